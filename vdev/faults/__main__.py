"""`python -m vdev.faults [FILE]`: makes the tables in docs/faults.md (or FILE) anew."""

from __future__ import annotations

import sys
from pathlib import Path

from vdev.faults.page import with_tables

PAGE = Path("docs/faults.md")


def main(arguments: list[str]) -> int:
    """The exit status: 0."""
    path = Path(arguments[0]) if arguments else PAGE
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
