"""The decoded trace: `source` feeds it, `recorder` keeps it, `records` decodes, `text` words it, `cli` shows it."""
