"""Ten mutations, chosen by the commit: each must be noticed. `make mutate` makes all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.__main__ import chosen
from tests.mutation.table import ROOT, Mutation, mutations

COUNT = 10
WITHOUT_GIT = "no commit"  # the seed where there is no git: always the same ten
LIMIT_S = 240.0


def _seed() -> str:
    """The commit's hash."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return WITHOUT_GIT
    return done.stdout.strip() or WITHOUT_GIT


SEED = _seed()
CHOSEN = chosen(mutations(), COUNT, SEED)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of the ten, by id; in a process of its own, which has imported nothing of ours."""
    file: Path = tmp_path_factory.mktemp("mutation") / "verdicts.json"
    argv = [sys.executable, "-m", "tests.mutation", "--json", str(file), "--only", *(one.id for one in CHOSEN)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert file.exists(), done.stdout + done.stderr
    return {verdict["mutation"]["id"]: verdict for verdict in json.loads(file.read_bytes())}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("one", CHOSEN, ids=[one.id for one in CHOSEN])
def test_a_mutation_chosen_by_the_commit_is_noticed(one: Mutation, verdicts: dict[str, dict[str, Any]]) -> None:
    verdict = verdicts[one.id]

    assert verdict["kind"] in ("killed", "time-out"), (
        f"{one.id} ({one.what}) {verdict['kind']}, seed {SEED}: {verdict['text']}\n{one.diff()}"
    )
