"""A minute of fuzzing in every run, and the proof that it would find something: bugs planted on purpose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.child import has_coverage
from tests.fuzz.places import FINDINGS, ROOT, command, environment, write_seeds
from tests.fuzz.plants import PLANTS, Plant
from tests.fuzz.session import Session
from tests.fuzz.targets import TARGETS

SOAK = os.environ.get("VDEV_TIER") == "soak"
JOBS = 2
SECONDS = 600 if SOAK else 30  # on each of JOBS cores: a minute in all
SEED = 1
PLANTED = [plant for plant in PLANTS.values() if SOAK or plant.in_ci]
needs_coverage = pytest.mark.skipif(
    not has_coverage(), reason="no atheris for this interpreter: make fuzz says so, too"
)


def fuzz(plant: Plant, directory: Path, *, plain: bool = False) -> tuple[list[Path], str]:
    """Fuzz the target of `plant` from the repository's corpus; the inputs found, and what the process said."""
    seeds, grown = write_seeds(TARGETS[plant.target], directory / "seeds"), directory / "grown"
    grown.mkdir()
    arguments = (f"-artifact_prefix={directory}/", f"-runs={plant.runs}", f"-seed={SEED}", str(grown), str(seeds))
    line = command(plant.target, *arguments, plant=plant.name, plain=plain)
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=3000, check=False)
    return [path for path in directory.iterdir() if path.is_file()], done.stderr


@needs_coverage
@pytest.mark.timeout(3600 if SOAK else 300)
@pytest.mark.parametrize("plant", PLANTED, ids=[plant.name for plant in PLANTED])
def test_a_bug_planted_on_purpose_is_found(plant: Plant, tmp_path: Path) -> None:
    found, said = fuzz(plant, tmp_path)

    assert found, said[-3000:]


@pytest.mark.timeout(300)
def test_without_coverage_a_shallow_bug_is_found_all_the_same(tmp_path: Path) -> None:
    found, said = fuzz(PLANTS["probe-short-reply"], tmp_path, plain=True)

    assert [path.name[:6] for path in found] == ["crash-"], said[-3000:]


@pytest.mark.parametrize("plant", PLANTS.values(), ids=list(PLANTS))
def test_a_plant_has_its_place_in_the_source_and_changes_it(plant: Plant) -> None:
    text = (ROOT / plant.path).read_text(encoding="utf-8")

    assert text.count(plant.old) == 1
    compile(text.replace(plant.old, plant.new), plant.path, "exec")
    assert plant.target in TARGETS


@pytest.mark.soak(count=SECONDS * JOBS, seed="random")
@pytest.mark.timeout(SECONDS + 300)
def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    session = Session(sorted(TARGETS), SECONDS, JOBS)
    session.work = tmp_path  # from the repository's corpus, not from what happens to be here

    clean = session.run()

    assert clean, f"{session.report()}\nsee {FINDINGS}, and docs/fuzzing.md for how to replay them"
    assert all(total.executions for total in session.totals.values()), session.report()
