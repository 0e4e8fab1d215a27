"""The decoded trace. `recorder` keeps it, `records` decodes, `file` and `commands` hand it out; `cli` shows it."""
