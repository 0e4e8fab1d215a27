"""Scenarios: a YAML file says what is done to a machine and its guest, and what must come of it (docs/scenarios.md)."""
