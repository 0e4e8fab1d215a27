"""The style guide, run as tests: ruff, its formatter, mypy --strict, the import contracts, sizes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = ("conftest.py",)
PACKAGES = ("vdev", "qmp_bridge", "guest_tests", "tests", "benchmarks", "scripts", "configs")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
INSIDE = ROOT / "configs" / "scenarios" / "inside"  # as suites are: what runs in a guest
SUITES = [*sorted(path.parent for path in (ROOT / "guest_tests" / "suites").glob("*/guest-suite.yaml")), INSIDE]
TOOLS = Path(sys.executable).parent


def _run(*command: str, cwd: Path = ROOT, **environment: str) -> None:
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def _sources() -> list[Path]:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted([*found, *(ROOT / name for name in ALONE)])


def test_ruff_finds_nothing() -> None:
    _run(str(TOOLS / "ruff"), "check", *ALONE, *PACKAGES)


def test_the_formatter_would_change_nothing() -> None:
    _run(str(TOOLS / "ruff"), "format", "--check", *ALONE, *PACKAGES)


@pytest.mark.timeout(300)
def test_mypy_strict_finds_nothing() -> None:
    _run(str(TOOLS / "mypy"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("suite", SUITES, ids=[suite.name for suite in SUITES])
def test_mypy_strict_finds_nothing_in_a_suite_of_guest_tests(suite: Path) -> None:
    """From within, as pytest imports its modules; names may repeat from suite to suite."""
    options = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache" / suite.name))
    _run(str(TOOLS / "mypy"), *options, "--explicit-package-bases", ".", cwd=suite, MYPYPATH=str(ROOT))


def test_imports_go_downwards_only() -> None:
    _run(str(TOOLS / "lint-imports"))


def test_no_file_is_longer_than_the_style_guide_allows() -> None:
    long = {
        str(path.relative_to(ROOT)): n
        for path in _sources()
        if (n := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def test_no_function_is_longer_than_the_style_guide_allows() -> None:
    long = {}
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                nlines = (node.end_lineno or node.lineno) - node.lineno + 1
                if nlines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = nlines
    assert long == {}


def _pages() -> list[Path]:
    folders = ("docs", *PACKAGES)
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))])


def test_every_link_of_the_documentation_leads_to_a_file() -> None:
    links = [(page, link) for page in _pages() for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    missing = [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not _leads_somewhere(page, link)]
    assert len(links) > 50
    assert missing == []


def _leads_somewhere(page: Path, link: str) -> bool:
    return link.startswith(("http://", "https://")) or (page.parent / link).exists()


def test_no_page_holds_the_remains_of_a_merge() -> None:
    """Tools look after the Python files; nobody else would notice in prose."""
    marked = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
    assert [str(page.relative_to(ROOT)) for page in _pages() if marked.search(page.read_text())] == []
