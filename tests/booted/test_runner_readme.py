"""The README's example of a suite of one's own, as it stands there, in an empty directory."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.suite_lab import run, write

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SECTION = "## Your own tests, in a guest"


def test_the_example_passes_on_both_attachments(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    blocks = [text for _, text in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)]
    files = {text.split("\n")[0].removeprefix("# "): text for text in blocks[:-1]}
    program, *arguments = shlex.split(blocks[-1])
    nlines = sum(len(text.strip().splitlines()) - 1 for text in files.values())
    write(tmp_path, files)

    ended = run(tmp_path, *arguments)

    assert (program, Path(sys.executable).name) == (".venv/bin/pytest", "python")
    assert list(files) == ["my-tests/guest-suite.yaml", "my-tests/test_copy.py"]
    assert nlines <= 12
    assert ended.counted() == "2 passed"
    assert (ended.status, ended.left) == (0, [])
