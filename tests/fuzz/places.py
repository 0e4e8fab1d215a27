"""Where the fuzzers keep things, and how their process is started."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from tests.fuzz.targets import Target

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"  # in the repository: small, played in every CI run
WORK = ROOT / "fuzz" / "grown"  # grows while we fuzz, and is lost without harm
FINDINGS = ROOT / "fuzz" / "findings"  # inputs that broke something, each with what the process said
RECORD = ROOT / "docs" / "fuzz.json"

ONE_INPUT_SECONDS = 10  # an input takes a millisecond
RSS_LIMIT_MB = 1024
ALWAYS = (f"-timeout={ONE_INPUT_SECONDS}", f"-rss_limit_mb={RSS_LIMIT_MB}", "-print_final_stats=1", "-verbosity=1")


def write_seeds(target: Target, directory: Path) -> Path:
    """Put the target's seeds and its corpus in the repository into `directory`, each under the hash of what it is."""
    directory.mkdir(parents=True, exist_ok=True)
    for data in [*target.seeds(), *(path.read_bytes() for path in corpus_files(target.name))]:
        (directory / file_name(data)).write_bytes(data)
    return directory


def corpus_files(name: str) -> list[Path]:
    """The corpus of a target in the repository, in a fixed order."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())


def file_name(data: bytes) -> str:
    """The name libFuzzer gives an input."""
    return hashlib.sha1(data).hexdigest()


def command(target: str, *arguments: str, plant: str | None = None, plain: bool = False) -> list[str]:
    """The process that fuzzes one target, with libFuzzer's arguments."""
    options = (["--plant", plant] if plant else []) + (["--plain"] if plain else [])
    return [sys.executable, "-m", "tests.fuzz.child", *options, target, "--", *ALWAYS, *arguments]


def environment() -> dict[str, str]:
    """The same hashes in every run, so that a seed means something."""
    return {**os.environ, "PYTHONHASHSEED": "0"}
