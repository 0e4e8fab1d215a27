"""`python -m vdev.qapi [FILE]`: writes docs/monitor-commands.md (or FILE) from the schema."""

from __future__ import annotations

import sys
from pathlib import Path

from vdev.qapi.page import page
from vdev.qapi.schema import schema

PAGE = Path("docs/monitor-commands.md")


def main(arguments: list[str]) -> int:
    """The exit status: 0."""
    path = Path(arguments[0]) if arguments else PAGE
    path.write_text(page(schema()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
