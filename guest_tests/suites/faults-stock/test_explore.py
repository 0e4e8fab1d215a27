from __future__ import annotations
import os, time, contextlib
import pytest
from guest_tests.payload import accel, guest, vfio, checks_hwrng, symbols
from guest_tests.payload.lab import PAGE, copy, RING_IOVA, SOURCE_IOVA, TARGET_IOVA
from guest_tests.payload.worker import Worker


def test_hold(stock, unit, host, faults, kernel_log, lab):
    known = symbols.places("viommu", "virtqueue")
    page = vfio.Buffer(PAGE)

    def w():
        with lab.container.mapped(TARGET_IOVA, page):
            pass

    for do, typ in (("hold", "MAP"), ("drop", "UNMAP")):
        wk = Worker(w)
        with wk.working():
            wk.goes_on()
            looks = host.step(
                "look_while_held",
                rule={"at": "request", "do": do, "match": {"endpoint": "accel0", "type": typ}, "times": 1},
                looks=6,
            )
            for l in looks:
                print([(symbols.name_at(a, known), i) for a, i in l])
            assert wk.goes_on()
    print("\n".join(kernel_log.find("")[-5:]))
    assert 0
