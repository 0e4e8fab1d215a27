"""Bugs planted on purpose, one line of source each: what the fuzzers must find, or they prove nothing.

A plant lives in the process that fuzzes and nowhere else: the module's source is changed on its way from the file to
the compiler, so that the bug is instrumented as a real one would be. Nothing is written.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Plant:
    """`new` in the place of `old`, which the file `path` has once. `runs` executions must be enough to find it."""

    name: str
    target: str
    path: str
    old: str
    new: str
    what: str
    runs: int = 100_000
    in_ci: bool = False

    def sow(self) -> None:
        """From now on the module is imported with the bug. ValueError when the file does not have `old` once."""
        file = ROOT / self.path
        text = file.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"plant {self.name}: {self.path} has its text {text.count(self.old)} times")
        changed = text.replace(self.old, self.new).encode()
        sys.dont_write_bytecode = True  # or the bug would outlive us
        original = SourceFileLoader.get_data

        def get_data(loader: SourceFileLoader, path: str) -> bytes:
            if Path(path) == file:
                return changed
            if Path(path).name.startswith(file.stem + ".") and Path(path).parent.parent == file.parent:
                raise OSError("compiled without the bug")
            return original(loader, path)

        SourceFileLoader.get_data = get_data  # type: ignore[method-assign, assignment]


_PLANTS = (
    Plant(
        "attach-before-check",
        target="requests",
        path="vdev/iommu/domains.py",
        old="            # D22: the domain's mappings would hide what is reserved for this endpoint\n",
        new="            domain.endpoints[endpoint_id] = endpoint\n",
        what="ATTACH changes the domain before its last check refuses it: needs a domain with a mapping where the"
        " second endpoint has a reserved region",
    ),
    Plant(
        "overlap-one-page",
        target="requests",
        path="vdev/iommu/intervals.py",
        old="            if stop > firsts[0]:\n",
        new="            if stop > firsts[0] + 4096:\n",
        what="MAP accepts a range that begins before all others and ends up to a page behind the start of the first",
    ),
    Plant(
        "probe-short-reply",
        target="requests",
        path="vdev/iommu/engine.py",
        old="writable_nbytes < kind.properties_nbytes + wire.TAIL_NBYTES:",
        new="writable_nbytes < kind.properties_nbytes:",
        what="PROBE with room for its properties and not for the tail gets a reply longer than its place",
        in_ci=True,
    ),
    Plant(
        "forgotten-cap",
        target="requests",
        path="vdev/iommu/fault_queue.py",
        old="        if len(self.pending) < self._limit:\n",
        new="        if len(self.pending) < self._limit or record[0] != 2:\n",
        what="faults of reasons other than MAPPING wait without limit",
        in_ci=True,
    ),
    Plant(
        "leak",
        target="requests",
        path="vdev/iommu/fault_queue.py",
        old="        self.dropped += 1\n",
        new="        self.dropped += 1\n        globals().setdefault('leak', []).append(b'x' * (1 << 24))\n",
        what="every fault that is dropped costs 16 MiB for good: nothing raises, memory grows from input to input",
    ),
    Plant(
        "endless-chain",
        target="rings",
        path="vdev/virtio/queue.py",
        old="            if not budget:\n",
        new="            if not budget and total:\n",
        what="a loop of empty descriptors is followed for ever: nothing raises, the input does not end",
    ),
    Plant(
        "indirect-bound",
        target="rings",
        path="vdev/virtio/queue.py",
        old="            if index >= entries:\n",
        new="            if index > entries:\n",
        what="a `next` one behind the table is followed: struct.error, in an indirect table of the exact length",
        in_ci=True,
    ),
    Plant(
        "in-flight-twice",
        target="rings",
        path="vdev/virtio/queue.py",
        old="        if head in self._in_flight:\n",
        new="        if head in self._in_flight and not self.event_idx:\n",
        what="with EVENT_IDX a head may be offered again while its reply is held back: two chains, one place",
    ),
    Plant(
        "read-only-page",
        target="rings",
        path="vdev/iommu/domains.py",
        old="        if access & WRITE and not hit[3] & WRITE:\n",
        new="        if access & WRITE and not hit[3] & WRITE and access & READ:\n",
        what="the slow path of a translation forgets D35: a buffer that starts in a writable mapping and ends in a"
        " read-only one is written whole",
    ),
    Plant(
        "window-bar",
        target="registers",
        path="vdev/functions/virtio_pci.py",
        old="        if bar != STRUCTURES_BAR or nbytes not in (1, 2, 4):\n",
        new="        if bar != STRUCTURES_BAR or nbytes not in (1, 2, 4, 8):\n",
        what="the configuration access window takes eight bytes: its four bytes of data cannot hold them",
    ),
    Plant(
        "config-end",
        target="registers",
        path="vdev/pci/config_space.py",
        old="        stop = min(offset + len(data), CONFIG_NBYTES)\n",
        new="        stop = min(offset + len(data), CONFIG_NBYTES + (offset & 3 == 3))\n",
        what="an odd write across the end of configuration space goes one byte too far",
        in_ci=True,
    ),
    Plant(
        "signal-off-bus",
        target="registers",
        path="vdev/pci/base.py",
        old="        if not 0 <= vector < self.msix_vectors or self.removed or not self.bus_master:\n",
        new="        if not 0 <= vector < self.msix_vectors or self.removed:\n",
        what="a function that was taken off the bus interrupts: a started driver, bus master off, then a quiesce",
    ),
    Plant(
        "devmem-bound",
        target="accelerator",
        path="vdev/endpoints/accelerator_ops.py",
        old="    if uses_src and descriptor.src + descriptor.nbytes > src_limit:\n",
        new="    if uses_src and descriptor.src + 1 > src_limit:\n",
        what="a COPY from device memory may start in it and end behind it: its two sides differ in length",
        runs=300_000,
    ),
    Plant(
        "tail-bound",
        target="accelerator",
        path="vdev/endpoints/accelerator_engine.py",
        old="        elif value >= registers.ring_size:\n",
        new="        elif value > registers.ring_size:\n",
        what="a running ring takes a tail that is its size: the engine goes round for ever after the last entry",
        in_ci=True,
    ),
    Plant(
        "pasid-not-enabled",
        target="accelerator",
        path="vdev/functions/dma.py",
        old="        if not control & pci.PASID_ENABLE:\n",
        new="        if not control:\n",
        what="a PASID passes while the capability has another right enabled and not PASIDs: needs a descriptor whose"
        " PASID is attached to a page that the RID does not reach",
    ),
    Plant(
        "held-for-ever",
        target="faults",
        path="vdev/faults/keeping.py",
        old="            one.due.cancel()\n",
        new="            pass\n",
        what="what is held for a time and let go before it still waits when all was cleared",
        in_ci=True,
    ),
    Plant(
        "seed-before-rules",
        target="faults",
        path="vdev/injector.py",
        old="            check_seed(plan.seed, SEED_KEY)\n",
        new="            check_seed(plan.seed, SEED_KEY)\n            self._plan.seed = plan.seed\n",
        what="a plan whose seed is good and whose rules are not changes the seed: needs the text of such a plan",
    ),
    Plant(
        "multi-write-bound",
        target="vfio_user",
        path="vdev/transports/vfio_session.py",
        old="        if request.count > wire.MAX_MULTI_WRITES or len(rest) < request.count * entry_nbytes:\n",
        new="        if request.count > wire.MAX_MULTI_WRITES or len(rest) < (request.count - 1) * entry_nbytes:\n",
        what="REGION_WRITE_MULTI may promise one entry more than it has: struct.error ends the VM's process",
    ),
    Plant(
        "refused-stays-silent",
        target="vhost_user",
        path="vdev/transports/vhost_session.py",
        old="                if row is not None and row.answers:\n",
        new="                if row is not None and row.answers and header.command != Command.GET_CONFIG:\n",
        what="a GET_CONFIG that is refused gets no answer, for which QEMU waits for ever",
        in_ci=True,
    ),
    Plant(
        "kick-leak",
        target="vhost_user",
        path="vdev/transports/vhost_fds.py",
        old="            for fds in (self._kicks, self._calls, self._errors):\n",
        new="            for fds in (self._kicks, self._calls):\n",
        what="the error eventfd of a ring outlives its connection",
    ),
    Plant(
        "thaw-forgotten",
        target="vhost_user",
        path="vdev/functions/vhost.py",
        old="        self._freeze(False)\n        self._push_waiting()\n",
        new="        if not self.broken:\n            self._freeze(False)\n        self._push_waiting()\n",
        what="DMA stays frozen when a new driver's rings cannot be used: a start, a stop, a start with bad rings",
    ),
    Plant(
        "null-id-lost",
        target="qmp_stream",
        path="qmp_bridge/bridge/messages.py",
        old='    own_id = json.dumps(value["id"]).encode() if "id" in value else NO_ID\n',
        new='    own_id = json.dumps(value["id"]).encode() if value.get("id") else NO_ID\n',
        what="an id that is null, 0, false or empty is not sent back",
        in_ci=True,
    ),
    Plant(
        "deep-request",
        target="control",
        path="vdev/control/server.py",
        old="        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:\n",
        new="        except (msgspec.ValidationError, RecursionError) as error:\n",
        what="a line that is no JSON ends the connection instead of being answered",
        in_ci=True,
    ),
    Plant(
        "half-restored",
        target="snapshot",
        path="vdev/iommu/engine.py",
        old="        state = load_unit(saved, ",
        new="        self._table.bypass = bool(saved.get('bypass'))\n        state = load_unit(saved, ",
        what="a state that is refused has changed the bypass byte",
        in_ci=True,
    ),
    Plant(
        "header-half-checked",
        target="trace_file",
        path="vdev/trace/source.py",
        old='[(endpoint, ("name", "bdf", "unit")) for endpoint in endpoints]\n',
        new='[(endpoint, ("name", "bdf")) for endpoint in endpoints]\n',
        what="a header whose endpoint has no unit ends vdev trace",
        in_ci=True,
    ),
    Plant(
        "version-twice",
        target="vfio_user",
        path="vdev/transports/vfio_session.py",
        old="        if self._is_open == (header.command == Command.VERSION):\n",
        new="        if not self._is_open and header.command != Command.VERSION:\n",
        what="VERSION is accepted again, with another largest transfer, while DMA messages are under way",
        in_ci=True,
    ),
    Plant(
        "read-past-region",
        target="vfio_user",
        path="vdev/transports/vfio_session.py",
        old="        if not access.count or access.offset + access.count > nbytes:\n",
        new="        if not access.count or access.offset >= nbytes:\n",
        what="an access may begin in its region and end behind it",
    ),
    Plant(
        "empty-file",
        target="config_yaml",
        path="vdev/config/text.py",
        old="            if node is None:\n",
        new="            if not text:\n",
        what="a file of comments alone is no ConfigError",
        in_ci=True,
    ),
    Plant(
        "damaged-line",
        target="trace_file",
        path="vdev/trace/cli.py",
        old="        except (ValueError, KeyError, TypeError, AttributeError,",
        new="        except (ValueError, KeyError, AttributeError,",
        what="a line that is JSON of another kind, or a field of another type, ends vdev trace",
    ),
)
PLANTS = {plant.name: plant for plant in _PLANTS}
