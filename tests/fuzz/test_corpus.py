"""The repository's corpus, played without a fuzzer: what once was found stays found out."""

from __future__ import annotations

import pytest

from tests.fuzz.places import CORPUS, corpus_files
from tests.fuzz.targets import TARGETS

MOST_NBYTES = 400_000  # of all of it: it is in the repository


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_input_of_the_corpus_and_every_seed_passes(name: str) -> None:
    target = TARGETS[name]
    one_input = target.one_input()
    inputs = [*target.seeds(), *(path.read_bytes() for path in corpus_files(name))]

    for data in inputs:
        one_input(data)

    assert len(inputs) > 5
    assert max(map(len, inputs)) <= target.max_nbytes


def test_the_corpus_belongs_to_targets_that_are_there_and_stays_small() -> None:
    folders = {path.name for path in CORPUS.iterdir() if path.is_dir()}
    nbytes = sum(path.stat().st_size for name in TARGETS for path in corpus_files(name))

    assert folders <= set(TARGETS)
    assert 0 < nbytes < MOST_NBYTES
