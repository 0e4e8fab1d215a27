"""The monitor's commands and events as data: the schema file, its reader, what is checked and made from it. Pure."""
