"""`translate` with a PASID explains what the access really meets: the same reason and fault, the same pieces."""

from __future__ import annotations

import pytest

from tests.support.pasid_scene import ALL_RIGHTS, ENDPOINT, IOVA, LACKS, Lack, Rig, attached
from vdev.errors import TranslationFault
from vdev.functions.explain import Access, AccessExplanation, explain_access
from vdev.iommu.tag import Tag
from vdev.wire.viommu_pasid import FAULT_R_PASID_REQUIRED


def explained(rig: Rig, tag: Tag | None) -> AccessExplanation:
    return explain_access(rig.engine, rig.door, Access("ep", IOVA, 64, 1, tag=tag))


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: lack.name)
def test_what_an_access_lacks_is_named_as_its_refusal_is_and_nothing_is_counted(lack: Lack) -> None:
    rig = Rig(bits=lack.bits)
    tag = lack.prepare(rig)

    told = explained(rig, tag)
    silent = (dict(rig.door.refused), rig.faults())
    with pytest.raises(TranslationFault) as refused:
        rig.door.tagged(tag).read(IOVA, 64)

    assert (told.reason, told.fault) == (refused.value.reason, refused.value.fault_reason) == (lack.word, lack.reason)
    assert [step.ok for step in told.steps] == [True] * (len(told.steps) - 1) + [False]
    assert silent == ({}, [])


def test_an_access_that_is_let_through_says_so_of_its_pasid_and_leads_where_it_leads() -> None:
    rig = Rig()
    rig.set_control(ALL_RIGHTS)
    tag = Tag(attached(rig), privileged=True)

    told = explained(rig, tag)

    assert told.reason == ""
    assert ("pasid", True) in [(step.step, step.ok) for step in told.steps]
    assert [(piece.gpa, piece.nbytes) for piece in told.pieces] == rig.engine.translate(ENDPOINT, IOVA, 64, 1, tag)


def test_an_access_without_a_pasid_of_an_endpoint_that_has_to_have_one_is_refused_for_that() -> None:
    rig = Rig()
    rig.door.pasid_only = True

    told = explained(rig, None)

    assert (told.reason, told.fault) == ("pasid-required", FAULT_R_PASID_REQUIRED)
