"""Write the pages."""

from __future__ import annotations

from tests.wires.tables import TABLES, rendered

for table in TABLES:
    table.page.write_text(rendered(table))
