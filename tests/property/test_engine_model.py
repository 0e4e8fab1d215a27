"""The engine against a brute-force model, step by step, on a granule of one byte and on one of sixteen.

After every step: same status, a refused request leaves the snapshot untouched, the same domains and mappings, and
every access gets the same fate byte by byte.
"""

from __future__ import annotations

import os
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.iommu_model import Model
from tests.support.iommu_requests import BYTES, Z3, engine
from vdev.errors import TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, Limits, ReservedRegion, UnitSettings
from vdev.wire import viommu as wire

SOAK = os.environ.get("VDEV_TIER") == "soak"
EXAMPLES, STEPS = (3000, 80) if SOAK else (150, 50)
REQUESTS = 20_000 if SOAK else 300
NEGOTIABLE = wire.F_MMIO | wire.F_BYPASS_CONFIG
UNITS = 40  # input range, in granules
RESERVED_UNITS: dict[int, list[tuple[range, bool]]] = {
    3: [],
    5: [(range(8, 10), True)],
    6: [(range(8, 10), True), (range(30, 33), False)],
}
MAX_DOMAINS, MAX_MAPPINGS = 2, 6

domains = st.sampled_from([1, 1, 1, 2, 2, 0, 3, 4])  # 4 is out of range
endpoints = st.sampled_from([3, 5, 6, 9])  # 9 is unknown
flags = st.sampled_from([0, 1, 2, 3, 3, 3, 4, 7, 8])
attach_flags = st.sampled_from([0, 0, 0, 0, 1, 2])
units = st.integers(0, UNITS + 2)
lengths = st.sampled_from([1, 1, 1, 2, 2, 3, 5, 9, 0, -1, UNITS])
skews = st.sampled_from([0] * 12 + [1, -1])  # misalignment in bytes
rarely = st.sampled_from([False] * 9 + [True])


class EngineMachine(RuleBasedStateMachine):
    granule: ClassVar[int] = 1
    force_aperture: ClassVar[bool] = False
    required: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        size = self.granule
        regions = {
            endpoint: [(range(span.start * size, span.stop * size), is_msi) for span, is_msi in spans]
            for endpoint, spans in RESERVED_UNITS.items()
        }
        self.model = Model(size, range(size, UNITS * size), range(0, 4), regions, MAX_DOMAINS, MAX_MAPPINGS)
        self.model.force_aperture, self.model.required = self.force_aperture, self.required
        self.model.bypass = not self.required
        limits = Limits(max_domains=MAX_DOMAINS, max_mappings=MAX_MAPPINGS)
        given_settings = UnitSettings(
            "u",
            page_size_mask=(1 << 64) - size,
            input_start=size,
            input_stop=UNITS * size,
            domain_stop=4,
            bypass_offered=not self.required,
            force_aperture=self.force_aperture,
            revalidate=self.required,
            isolation="required" if self.required else "preferred",
            limits=limits,
        )
        self.engine = Engine(
            given_settings,
            [
                EndpointSettings(number, f"e{number}", tuple(ReservedRegion(s.start, s.stop, m) for s, m in spans))
                for number, spans in regions.items()
            ],
        )
        self.engine.set_features(-1)

    @initialize(domain=st.integers(1, 2), endpoint=st.sampled_from([3, 3, 5]))
    def start(self, domain: int, endpoint: int) -> None:
        self.attach(domain, endpoint, 0, False)

    def send(self, request: bytes, expected: int) -> None:
        before = self.engine.snapshot()
        assert self.engine.handle(request, 4) == bytes([expected, 0, 0, 0])
        if expected != wire.S_OK:
            assert self.engine.snapshot() == before

    def span(self, unit: int, length: int, skew: int) -> tuple[int, int]:
        """First and last byte (inclusive) of a possibly odd range, inside 64 bits."""
        first = unit * self.granule
        return first, max(first + length * self.granule - 1 + skew, 0)

    @rule(domain=domains, endpoint=endpoints, flags=attach_flags, reserved=rarely)
    def attach(self, domain: int, endpoint: int, flags: int, reserved: bool) -> None:
        raw = wire.Attach(wire.T_ATTACH, Z3, domain, endpoint, flags, bytes([reserved, 0, 0, 0])).pack()
        self.send(raw, self.model.attach(domain, endpoint, flags, reserved))

    @rule(domain=domains, endpoint=endpoints)
    def detach(self, domain: int, endpoint: int) -> None:
        raw = wire.Detach(wire.T_DETACH, Z3, domain, endpoint, b"ignored!").pack()
        self.send(raw, self.model.detach(domain, endpoint))

    @rule(domain=domains, unit=units, length=lengths, skew=skews, gpa=st.integers(0, 99), gpa_skew=skews, flags=flags)
    def map(self, domain: int, unit: int, length: int, skew: int, gpa: int, gpa_skew: int, flags: int) -> None:
        first, last = self.span(unit, length, skew)
        phys = max(gpa * self.granule + gpa_skew, 0)
        raw = wire.Map(wire.T_MAP, Z3, domain, first, last, phys, flags).pack()
        self.send(raw, self.model.map(domain, first, last, phys, flags))

    @rule(domain=domains, unit=units, length=lengths, skew=skews, reserved=rarely)
    def unmap(self, domain: int, unit: int, length: int, skew: int, reserved: bool) -> None:
        first, last = self.span(unit, length, skew)
        raw = wire.Unmap(wire.T_UNMAP, Z3, domain, first, last, bytes([0, 0, 0, reserved])).pack()
        self.send(raw, self.model.unmap(domain, first, last, reserved))

    def pick(self, index: int) -> int:
        """A living domain that translates, so that most requests get past the first checks."""
        living = [number for number, domain in self.model.domains.items() if not domain.bypass]
        return living[index % len(living)] if living else 1

    @precondition(lambda self: self.model.domains)
    @rule(
        index=st.integers(0, 1), unit=units, length=st.integers(1, 4), gpa=st.integers(0, 99), flags=st.integers(0, 3)
    )
    def map_properly(self, index: int, unit: int, length: int, gpa: int, flags: int) -> None:
        self.map(self.pick(index), unit, length, 0, gpa, 0, flags)

    @precondition(lambda self: self.model.live())
    @rule(index=st.integers(0, 1), unit=units, length=st.integers(1, 9))
    def unmap_properly(self, index: int, unit: int, length: int) -> None:
        self.unmap(self.pick(index), unit, length, 0, False)

    @rule(value=st.integers(0, 3))
    def write_bypass(self, value: int) -> None:
        self.engine.write_bypass(value)
        if value < 2 and not self.required:
            self.model.bypass = bool(value)

    @rule(negotiated=st.booleans())
    def negotiate(self, negotiated: bool) -> None:
        self.engine.set_features(-1 if negotiated else ~NEGOTIABLE)
        self.model.negotiated = negotiated

    @rule(kind=st.sampled_from(["restore"] * 20 + ["device", "system"]))
    def restart(self, kind: str) -> None:
        if kind == "restore":
            saved = self.engine.snapshot()
            self.engine.device_reset()
            self.engine.restore(saved)
            assert self.engine.snapshot() == saved
            return
        self.model.reset()
        self.model.negotiated = False
        if kind == "system":
            self.engine.system_reset()
            self.model.bypass = not self.required
        else:
            self.engine.device_reset()

    @rule(
        endpoint=st.sampled_from([3, 5, 6]), unit=units, offset=st.integers(0, 15),
        nbytes=st.integers(1, 60), access=st.integers(1, 3),
    )  # fmt: skip
    def access(self, endpoint: int, unit: int, offset: int, nbytes: int, access: int) -> None:
        iova = unit * self.granule + offset % self.granule
        fates = [self.model.byte(endpoint, address, access) for address in range(iova, iova + nbytes)]
        bad = next((index for index, fate in enumerate(fates) if isinstance(fate, tuple)), None)
        if bad is None:
            pieces = self.engine.translate(endpoint, iova, nbytes, access)
            assert [gpa + index for gpa, count in pieces for index in range(count)] == fates
            return
        with pytest.raises(TranslationFault) as caught:
            self.engine.translate(endpoint, iova, nbytes, access)
        assert (caught.value.iova, ("fault", caught.value.fault_reason)) == (iova + bad, fates[bad])

    @invariant()
    def the_same_domains_and_mappings_live(self) -> None:
        state = self.engine.snapshot()
        assert state["bypass"] == self.model.bypass
        assert {d["id"]: d["bypass"] for d in state["domains"]} == {n: d.bypass for n, d in self.model.domains.items()}
        for domain in state["domains"]:
            assert domain["endpoints"] == sorted(self.model.members(domain["id"]))
            mapped = {
                address: (gpa + address - start, flags)
                for start, stop, gpa, flags in domain["mappings"]
                for address in range(start, stop)
            }
            model = self.model.domains[domain["id"]].bytes
            assert mapped == {address: (gpa, flags) for address, (gpa, flags, _) in model.items()}
        assert self.engine.describe()["mappings"] == self.model.live()


class SixteenByteMachine(EngineMachine):
    granule = 16
    force_aperture = True


class RequiredMachine(EngineMachine):
    """`isolation: required`: no request, write, reset or snapshot makes anything bypass."""

    granule = 16
    force_aperture = required = True

    @invariant()
    def nothing_bypasses(self) -> None:
        assert not self.engine.bypass
        assert not any(domain["bypass"] for domain in self.engine.snapshot()["domains"])


@pytest.mark.soak(count=EXAMPLES * STEPS, seed="random")
@pytest.mark.timeout(3600 if SOAK else 120)
@pytest.mark.parametrize("machine", [EngineMachine, SixteenByteMachine, RequiredMachine])
def test_the_engine_agrees_with_the_brute_force_model(machine: type[EngineMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.soak(count=REQUESTS, seed="random")
@given(
    readable=st.binary(max_size=80), writable_nbytes=st.integers(0, 600), strict=st.booleans(), kind=st.integers(0, 6)
)
@settings(max_examples=REQUESTS, deadline=None)
def test_any_bytes_get_a_reply_that_fits_and_a_refusal_leaves_no_trace(
    readable: bytes, writable_nbytes: int, strict: bool, kind: int
) -> None:
    unit = engine(UnitSettings("u", mode="strict") if strict else BYTES)
    before = unit.snapshot()

    reply = unit.handle(bytes([kind]) + readable[1:] if readable else readable, writable_nbytes)

    assert len(reply) in {0, 4, 516, writable_nbytes}
    assert len(reply) <= writable_nbytes
    assert reply or writable_nbytes < 4 or strict
    if not reply or reply[-4]:
        assert unit.snapshot() == before
