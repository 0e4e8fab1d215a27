"""Config to cores: units, endpoints and doors of one VM, wired together. No sockets, no loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vdev.backends.entropy import open_entropy
from vdev.config import Config, EndpointConfig, Reserved, UnitConfig, VmConfig, pasid_ranges, unit_policy
from vdev.config.pasids import needs_pasid_capability
from vdev.config.text import parse_bdf, parse_size
from vdev.endpoints.base import Bay, Endpoint, OptionValue
from vdev.endpoints.table import MODELS
from vdev.errors import ConfigError
from vdev.events import Trace
from vdev.functions.base import Worker
from vdev.functions.dma import DmaDoor
from vdev.functions.freezer import Freezer
from vdev.functions.kernel_pasid import KernelPasids
from vdev.functions.message_door import MessageDoor
from vdev.functions.stages import Stages
from vdev.functions.vhost import VhostCarrier
from vdev.functions.viommu import ViommuDevice, viommu_function
from vdev.functions.virtio_pci import VirtioPciFunction
from vdev.iommu.engine import Engine
from vdev.iommu.events import Event
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.settings import EndpointSettings, Limits, PasidSettings, ReservedRegion, UnitSettings
from vdev.pci.base import PciFunction
from vdev.virtio.ordering import Ordering
from vdev.virtio.polling import PollWindow
from vdev.wire import pci

ADDRESS_SPACE = 1 << 64
Handle = Callable[[bytes | memoryview, int], bytes]  # Engine.handle
Wrap = Callable[[Handle], Handle]


@dataclass(slots=True)
class Unit:
    """One virtio-iommu unit and what is behind it."""

    config: UnitConfig
    engine: Engine
    device: ViommuDevice
    function: VirtioPciFunction | VhostCarrier
    freezer: Freezer  # of all its endpoints
    stages: Stages
    injected: dict[int, Wrap] = field(default_factory=dict)  # between the engine and who asks it, by rank
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    doors: dict[str, DmaDoor] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """State for queries: plain data."""
        engine, given = self.engine.describe(), self.engine.settings
        spaces = {
            space["id"]: {"domain": space["domain"], "mappings": space["mappings"]} for space in engine["endpoints"]
        }
        return {
            "bdf": self.config.bdf,
            "attach": self.config.attach,
            "isolation": given.isolation,
            "force-aperture": given.force_aperture,
            "revalidate": given.revalidate,
            **engine,
            "kicks": self.device.kicks,
            "held-replies": self.device.held_replies,
            "dropped-faults": self.device.dropped_faults,
            "ring-errors": self.device.ring_errors,
            "functions": {
                name: {
                    "endpoint": self.doors[name].endpoint_id,
                    **spaces[self.doors[name].endpoint_id],
                    "refused": dict(self.doors[name].refused),
                    "refused-pasids": [
                        {"pasid": pasid, "count": count} for pasid, count in self.doors[name].refused_pasids.items()
                    ],
                    "in-flight": self.doors[name].nflights,
                    **endpoint.describe(),
                }
                for name, endpoint in self.endpoints.items()
            },
        }


class Machine:
    """All functions of one VM."""

    def __init__(
        self,
        config: Config,
        *,
        emit: Callable[[Event], None],
        wake: Callable[[Worker], None],
        wake_at: Callable[[Worker, int], None],
        ordering: Ordering,
        pasids: PasidSet | None = None,
    ) -> None:
        """`pasids` is the VM's set; without one its units offer no PASIDs.

        Raises ConfigError for what only the cores can judge (options of a model, regions of an endpoint).
        """
        self.units: dict[str, Unit] = {}
        self._wake = wake
        self._wake_at = wake_at
        self._ordering = ordering
        self._trace: Trace | None = None
        self._timed: Wrap | None = None
        self.changed: Callable[[], None] = lambda: None  # told after an endpoint came or went
        self._has_slots = bool(config.slots)
        self._vm = config.vm
        self._pasids = pasids
        self.kernel_pasids = None if pasids is None else KernelPasids(pasids)
        for unit in config.units:
            behind = [endpoint for endpoint in config.endpoints if endpoint.unit == unit.name]
            self.units[unit.name] = self._build_unit(unit, behind, emit)
        for carrier in (unit.function for unit in self.units.values()):
            if not isinstance(carrier, VhostCarrier):
                carrier.was_device_reset = self._function_was_reset

    @property
    def functions(self) -> dict[str, VirtioPciFunction | VhostCarrier | Endpoint]:
        """Every function by its name, units first."""
        units = {name: unit.function for name, unit in self.units.items()}
        endpoints = {name: endpoint for unit in self.units.values() for name, endpoint in unit.endpoints.items()}
        return {**units, **endpoints}

    def trace_to(self, trace: Trace | None, timed: Wrap) -> None:
        """Let every function tell `trace` what happens; `timed` wraps what answers requests. None ends it."""
        self._trace = trace
        self._timed = None if trace is None else timed
        for function in self.functions.values():
            function.trace = trace
        for unit in self.units.values():
            self._connect(unit)
            for door in unit.doors.values():
                door.trace = trace

    def answer_with(self, unit: str, rank: int, injected: Wrap | None) -> None:
        """Requests of `unit` are answered by `injected(handle)`, where `handle` is that of the next lower rank, at last
        `Engine.handle`; None: nothing of that rank stands between them."""
        wraps = self.units[unit].injected
        if injected is None:
            wraps.pop(rank, None)
        else:
            wraps[rank] = injected
        self._connect(self.units[unit])

    def _connect(self, unit: Unit) -> None:
        """The engine to its device, with what stands between them: a trace sees what the driver sees."""
        handle: Handle = unit.engine.handle
        for _, wrap in sorted(unit.injected.items()):
            handle = wrap(handle)
        unit.device.handle = handle if self._timed is None else self._timed(handle)

    def add_endpoint(self, config: EndpointConfig) -> Endpoint:
        """The endpoint of a `config` that was checked, built and known to its unit, frozen and traced as the others.

        Raises ConfigError for what only the cores can judge; then nothing has changed.
        """
        unit = self.units[config.unit]
        endpoint, door = self._add(unit, config)
        endpoint.trace = door.trace = self._trace
        if unit.freezer.holders:
            endpoint.freeze(True)
        self.changed()
        return endpoint

    def remove_endpoint(self, name: str) -> None:
        """Detach endpoint `name` and forget it; nobody may be connected to it. KeyError if it is not there."""
        unit = next(unit for unit in self.units.values() if name in unit.endpoints)
        number = unit.doors[name].endpoint_id
        if self.kernel_pasids is not None:
            self.kernel_pasids.remove(number)
        unit.engine.remove_endpoint(number)  # while its name is known to whoever hears of the detach
        unit.stages.remove(number)
        del unit.doors[name]
        unit.endpoints.pop(name).retire()
        self._wake(unit.device)  # to sweep up
        self.changed()

    def give_up(self, worker: Worker) -> None:
        """A worker crashed, a bug of ours: nothing it has in flight lands, and nobody waits for it."""
        for unit in self.units.values():
            for name, endpoint in unit.endpoints.items():
                if endpoint is worker:
                    unit.engine.in_flight.cancel(unit.doors[name].endpoint_id)

    def attachments(self) -> dict[tuple[str, int], tuple[int, ...]]:
        """The endpoints in each domain: (unit, domain) -> endpoint ids."""
        return {
            (name, domain["id"]): tuple(domain["endpoints"])
            for name, unit in self.units.items()
            for domain in unit.engine.describe()["domains"]
        }

    def _build_unit(self, config: UnitConfig, behind: list[EndpointConfig], emit: Callable[[Event], None]) -> Unit:
        pasids = self._pasids if config.probe_size else None  # without PROBE no driver could learn of them
        engine = Engine(_unit_settings(self._vm, config, pasids=pasids is not None), (), emit, pasids)
        endpoints: dict[str, Endpoint] = {}

        def quiesce() -> None:
            for endpoint in endpoints.values():
                endpoint.quiesce()

        device = ViommuDevice(engine, wake=self._wake, quiesce=quiesce, window=PollWindow())
        freezer = Freezer(lambda: [endpoint.freeze for endpoint in endpoints.values()])
        stages = Stages(config.name, emit)
        engine.reached = stages.reach
        unit = Unit(config, engine, device, self._carry(config, device, freezer), freezer, stages, endpoints=endpoints)
        for endpoint in behind:
            self._add(unit, endpoint)
        return unit

    def _carry(self, config: UnitConfig, device: ViommuDevice, freezer: Freezer) -> VirtioPciFunction | VhostCarrier:
        """The transport `config` asks for, connected to `device`."""
        if config.attach == "vfio-user":
            return viommu_function(device, self._ordering)
        freeze = partial(freezer.set, "rings suspended")
        carrier = VhostCarrier(config.name, device, self._ordering, system_reset=device.system_reset, freeze=freeze)
        device.connect(carrier)
        return carrier

    def _function_was_reset(self) -> None:
        """DEVICE_RESET of a PCI function: units over vhost-user see a machine reset in no other way."""
        for unit in self.units.values():
            if isinstance(unit.function, VhostCarrier):
                unit.function.function_was_reset()

    def _add(self, unit: Unit, config: EndpointConfig) -> tuple[Endpoint, DmaDoor]:
        """An endpoint that the unit knows. ConfigError, and then nothing has changed."""
        endpoint, door = self._build_endpoint(unit, config)
        pasid = _pasid_settings(config, endpoint) if unit.engine.settings.pasids else None
        unit.engine.add_endpoint(_endpoint_settings(unit.config, config, pasid))
        self._put(unit, endpoint, door)
        door.pasid_only = config.dma == "pasid_only"
        if self.kernel_pasids is not None and config.kernel_pasid and pasid is not None:
            self.kernel_pasids.add(unit.engine, door.endpoint_id, pasid, endpoint.on_kernel_pasid)
        return endpoint, door

    def _put(self, unit: Unit, endpoint: Endpoint, door: DmaDoor) -> None:
        """`endpoint` into its place behind `unit`, whose engine knows it."""
        unit.endpoints[endpoint.name] = endpoint
        unit.doors[endpoint.name] = door
        unit.stages.add(door.endpoint_id, endpoint.name)
        endpoint.was_device_reset = self._function_was_reset
        endpoint.was_sized = partial(unit.stages.reach, door.endpoint_id, "enumerated")

    def _build_endpoint(self, unit: Unit, config: EndpointConfig) -> tuple[Endpoint, DmaDoor]:
        model = MODELS.get(config.model)
        if model is None:
            known = ", ".join(sorted(MODELS))
            raise ConfigError(f"endpoints[{config.name}].model", f"'{config.model}' is no model", f"known: {known}")

        doors: list[DmaDoor] = []

        def open_door(function: PciFunction) -> DmaDoor:
            doors.append(DmaDoor(unit.engine, parse_bdf(config.bdf), function, after_fault=unit.device.faults_pending))
            return doors[0]

        options: dict[str, OptionValue] = dict(config.options)
        bay = Bay(open_door, self._wake, self._wake_at, self._ordering, open_entropy)
        endpoint = model(config.name, bay, options)
        required = self._vm.isolation == "required"
        if required or (self._has_slots and parse_bdf(config.bdf) >> 8):
            endpoint.keep_msix_table()  # or else it could not be unplugged, or QEMU would write messages anywhere
        if required:
            endpoint.translate_message = MessageDoor(unit.engine, doors[0], unit.device.faults_pending)
        return endpoint, doors[0]


def _unit_settings(vm: VmConfig, config: UnitConfig, *, pasids: bool) -> UnitSettings:
    granule = parse_size(config.granule, f"units[{config.name}].granule")
    limits, policy = config.limits, unit_policy(vm, config)
    return UnitSettings(
        name=config.name,
        mode=config.mode,
        page_size_mask=ADDRESS_SPACE - granule,
        input_start=config.input_range[0],
        input_stop=config.input_range[1] + 1,
        domain_start=config.domain_range[0],
        domain_stop=config.domain_range[1] + 1,
        bypass_offered=policy.bypass != "not-offered",
        boot_bypass=policy.bypass == "on",
        force_aperture=policy.force_aperture,
        revalidate=policy.revalidate,
        isolation=vm.isolation,
        mmio=config.mmio,
        probe_size=config.probe_size,
        pasids=pasids,
        limits=Limits(
            max_domains=limits.max_domains,
            max_mappings_per_domain=limits.max_mappings_per_domain,
            max_mappings=limits.max_mappings,
            max_pairs=limits.max_pairs,
            max_pending_faults=limits.max_pending_faults,
            max_request_nbytes=limits.max_request_nbytes,
        ),
    )


def _endpoint_settings(unit: UnitConfig, endpoint: EndpointConfig, pasid: PasidSettings | None) -> EndpointSettings:
    reserved = tuple(_region(region) for region in (*unit.reserved, *endpoint.reserved))
    return EndpointSettings(parse_bdf(endpoint.bdf), endpoint.name, reserved, pasid)


def _pasid_settings(config: EndpointConfig, endpoint: Endpoint) -> PasidSettings | None:
    """What the unit tells of the endpoint's PASIDs; None where its model, or its options, gave it no capability."""
    if not endpoint.pasid_bits:
        key = needs_pasid_capability(config)
        if key:
            problem = f"{config.name} has no PASID capability"
            raise ConfigError(f"endpoints[{config.name}].{key}", problem, "leave it out; of models accelerator has one")
        return None
    rights = endpoint.pasid_rights
    return PasidSettings(
        endpoint.pasid_bits,
        execute=bool(rights & pci.PASID_EXECUTE),
        privileged=bool(rights & pci.PASID_PRIVILEGED),
        only=config.dma == "pasid_only",
        reserved=pasid_ranges(config),
    )


def _region(region: Reserved) -> ReservedRegion:
    return ReservedRegion(region.start, region.end + 1, region.kind == "msi")
