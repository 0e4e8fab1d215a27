"""The three cases of QEMU's own virtio-iommu test, on QEMU's device and on ours."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct.wire import TAIL_NBYTES
from tests.qtest.steps import CASES
from tests.qtest.subjects import Subject


def test_config_shows_the_ranges_and_bypass(subject: Subject) -> None:
    with subject.open() as viommu:
        config = viommu.read_config()

    assert config.input_range.start == 0
    assert config.input_range.stop > 0xFFFFFFFF
    assert tuple(config.domain_range) == (0, 1 << 32)
    assert config.raw[36] == 1


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_answered_as_its_granule_says(subject: Subject, case: str) -> None:
    steps = CASES[case]
    with subject.open() as viommu:
        answers = [viommu.send(step.request(subject.endpoint)) for step in steps]

    expected = [(step.words, step.byte if subject.is_byte_granular else step.at_4k) for step in steps]
    assert [(step.words, answer.status) for step, answer in zip(steps, answers, strict=True)] == expected
    assert {answer.used_nbytes for answer in answers} == {TAIL_NBYTES}
    assert {answer.written[1:] for answer in answers} == {bytes(3)}  # reserved
