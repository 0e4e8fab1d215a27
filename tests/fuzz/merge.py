"""Minimises what a session has grown into the repository's corpus: few small files that cover as much."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.fuzz.places import CORPUS, ROOT, WORK, command, corpus_files, environment, write_seeds
from tests.fuzz.targets import TARGETS

# Edges and how often they are taken, without compared values: those keep five times as many inputs, which is good for
# a search and not for a repository.
MERGE = ("-set_cover_merge=1", "-use_cmp=0")
SECONDS = 900


def merge(name: str) -> str:
    """Replace the corpus of `name` by inputs of its own and of the work directory; a line that says what it is now.

    What passes there because it once was a finding (`kept-...`) stays as it is.
    """
    with tempfile.TemporaryDirectory(prefix="vdev-fuzz-") as directory:
        fresh, seeds = Path(directory) / "fresh", write_seeds(TARGETS[name], Path(directory) / "seeds")
        fresh.mkdir()
        work = WORK / name / "corpus"
        sources = [str(seeds), *([str(work)] if work.is_dir() else [])]
        line = command(name, f"-artifact_prefix={directory}/", *MERGE, str(fresh), *sources)
        done = subprocess.run(
            line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}: the corpus was left as it is: {done.stderr[-2000:]}")
        for path in corpus_files(name):
            if not path.name.startswith("kept-"):
                path.unlink()
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for path in fresh.iterdir():
            shutil.copyfile(path, CORPUS / name / path.name)
    files = corpus_files(name)
    return f"{name}: {len(files)} inputs, {sum(path.stat().st_size for path in files)} bytes"
