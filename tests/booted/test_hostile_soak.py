"""Hostile peers at random beside a working VM: on its own sockets, on functions nobody else uses, on another VM's.

VDEV_TIER=soak does it for ten minutes. The guest runs the demo's checks round after round meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec
import pytest

from guest_tests.payload import __path__ as payload_path
from guest_tests.payload.checks import chosen
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from tests.booted.conftest import CONFIG
from tests.support.hostile_peers import ACTS, Act, Where, whatever_comes
from tests.support.hostile_watch import Watch, working
from tests.support.patience import heard
from tests.support.serve_process import ATTACKED, ServeProcess, serving
from vdev.config import Config, EndpointConfig, UnitConfig, load_config, parse_bdf

SOAK = os.environ.get("VDEV_TIER") == "soak"
SECONDS = 600 if SOAK else 8
pytestmark = [pytest.mark.guest, pytest.mark.timeout(SECONDS + 300)]
SEED = 20261121
HANDS = 2  # acts under way at a time
MORE_ROUNDS = 2  # after the last act
ROUND_S = 90.0  # of the first, the boot included, on a machine that is busy with other things
ROOM_NBYTES = 64 << 20
LINES_A_MINUTE = 400  # a dozen kinds of trouble, eight lines each and minute, on a handful of sockets
PEER_SECONDS = 3.0  # of acts that are turned away by identity

# A process of its own for each round, so that the next one finds every device closed.
PAYLOAD = b"""\
import json, os, sys
sys.path.insert(0, "/payload")
from guest_payload.checks import chosen
from guest_payload.guest import Channel, KernelLog
from guest_payload.lab import Lab
from guest_payload.main import run_check

def one_round(names):
    reading, writing = os.pipe()
    if not os.fork():
        lab = Lab(KernelLog())
        records = [run_check(check, lab) for check in chosen(names, 1)]
        os.write(writing, json.dumps({r["check"]: "" if r["ok"] else r["detail"][:200] for r in records}).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = json.loads(pipe.read() or b"{}")
    os.wait()
    return answer

channel = Channel()
names = [check.name for check in chosen([], 1)]
channel.send({"hello": 1, "round": one_round([])})
names.remove("driver-bound")  # its line leaves the kernel's log in the end
channel.receive(600)
# A round has five faults, and Linux drops what is more than ten lines in five seconds.
while channel.receive(3) is None:
    channel.send({"round": one_round(names)})
channel.send({"halted": True})
channel.receive(600)
"""


@dataclass
class Soak:
    """What is attacked, and what came of it."""

    random: Random
    targets: dict[Where, list[Path]]
    until: float
    done: Counter[str] = field(default_factory=Counter)
    rounds: list[dict[str, str]] = field(default_factory=list)

    acts: tuple[Act, ...] = ACTS

    async def hand(self) -> None:
        """Act after act until the time is over and a round was done meanwhile, which takes its time on a busy machine.

        An act that is not answered as it must be fails the test.
        """
        while time.monotonic() < self.until or not self.rounds:
            act: Act = self.random.choice(self.acts)
            self.done[act.name] += 1
            await asyncio.to_thread(whatever_comes, act, self.random.choice(self.targets[act.where]))


def _with_spares(config: Config, identity: Literal["peer", "unchecked"]) -> Config:
    """The same machine with units and endpoints that QEMU is not told of; `unchecked` opens them to any process."""
    bus = 1 + max(parse_bdf(endpoint.bdf) >> 8 for endpoint in config.endpoints)
    spares = (
        UnitConfig(name="spare-iommu", bdf="00:1e.0"),
        UnitConfig(name="spare-vhost", bdf="00:1d.0", attach="vhost-user"),
    )
    return msgspec.structs.replace(
        config,
        vm=msgspec.structs.replace(config.vm, identity=identity),
        units=(*config.units, *spares),
        endpoints=(
            *config.endpoints,
            EndpointConfig(name="spare-accel", unit="spare-iommu", bdf=f"{bus:02x}:00.0"),
            EndpointConfig(name="spare-behind", unit="spare-vhost", bdf=f"{bus + 1:02x}:00.0"),
        ),
    )


def _own_targets(vm: RunningVm) -> dict[Where, list[Path]]:
    """The VM's sockets by what may be done to them; its own functions are connected, so that only the door is open."""
    directory = Path(vm.control_path).parent
    deep = [directory / "spare-iommu.sock", directory / "spare-accel.sock"]
    shallow = [directory / "iommu0.sock", directory / "accel0.sock"]
    return {
        Where.FUNCTION: [*deep, *shallow],
        Where.VFIO: [*deep, *shallow],
        Where.VHOST: [directory / "spare-vhost.sock"],
        Where.CONTROL: [Path(vm.control_path)],
    }


def _targets(vm: RunningVm, other: ServeProcess) -> dict[Where, list[Path]]:
    """The sockets of the VM and of another one."""
    functions = [other.path(name) for name in ("iommu0", "accel0", "accel1")]
    others = {
        Where.FUNCTION: functions,
        Where.VFIO: functions,
        Where.VHOST: [other.path("iommu2")],
        Where.CONTROL: [Path(other.ready["control"])],
    }
    return {where: [*paths, *others[where]] for where, paths in _own_targets(vm).items()}


async def _next_round(messages: Any) -> dict[str, str]:
    answer: dict[str, str] = (await anext(messages))["round"]
    return answer


async def _attacked(soak: Soak, vm: RunningVm, messages: Any) -> None:
    """The guest works while the hands act, and for a few rounds more; then it stands still."""
    async with asyncio.TaskGroup() as group:
        hands = [group.create_task(soak.hand()) for _ in range(HANDS)]
        await vm.send({"go": 1})
        more = MORE_ROUNDS
        while more:
            soak.rounds.append(await _next_round(messages))
            more -= all(hand.done() for hand in hands)
    await vm.send({"halt": 1})
    while "halted" not in (message := await anext(messages)):
        soak.rounds.append(message["round"])


@pytest.mark.soak(count=SECONDS, seed=SEED)
async def test_a_vm_works_while_its_backend_is_attacked_and_nothing_is_left_open(
    tmp_path: Path, record_property: Any
) -> None:
    config = load_config(CONFIG)
    path = tmp_path / "spares.json"
    path.write_bytes(msgspec.json.encode(_with_spares(config, "unchecked")))
    files: dict[str, Path | bytes] = {"main.py": PAYLOAD, "guest_payload": Path(payload_path[0])}
    with serving(ATTACKED, tmp_path / "other") as other:
        async with bring_up(config, Options(config_path=path, payload_files=files)) as vm, working(other) as worker:
            messages = heard(vm, ROUND_S)
            first = await _next_round(messages)
            assert vm._backend is not None
            watches = [
                Watch(vm._backend.pid, vm.logs / "backend.log"),
                Watch(other.popen.pid, other.log),
            ]
            copies = worker.copies
            soak = Soak(Random(SEED), _targets(vm, other), time.monotonic() + SECONDS)

            await _attacked(soak, vm, messages)

            await worker.more_than(copies)
            for watch in watches:
                await watch.settled()
            facts = {
                "acts": sum(soak.done.values()),
                "kinds_of_act": len(soak.done),
                "rounds": len(soak.rounds),
                "copies_of_the_other_vm": worker.copies - copies,
                "grown_kib": [watch.grown_nbytes() >> 10 for watch in watches],
                "log_lines": [len(watch.lines()) for watch in watches],
                "open_fds": [watch.open_fds().total() for watch in watches],
            }
            for name, value in facts.items():
                record_property(name, value)
            await messages.aclose()
            _judge(first, soak, watches)
            assert len(soak.rounds) > MORE_ROUNDS  # some under attack


async def test_who_is_not_the_vms_qemu_is_turned_away_from_every_function(tmp_path: Path) -> None:
    config = load_config(CONFIG)
    path = tmp_path / "peer.json"
    path.write_bytes(msgspec.json.encode(_with_spares(config, "peer")))
    files: dict[str, Path | bytes] = {"main.py": PAYLOAD, "guest_payload": Path(payload_path[0])}
    async with bring_up(config, Options(config_path=path, payload_files=files)) as vm:
        messages = heard(vm, ROUND_S)
        first = await _next_round(messages)
        assert vm._backend is not None
        watch = Watch(vm._backend.pid, vm.logs / "backend.log")
        acts = tuple(act for act in ACTS if act.where is not Where.CONTROL)
        soak = Soak(Random(SEED), _own_targets(vm), time.monotonic() + PEER_SECONDS, acts=acts)

        await _attacked(soak, vm, messages)

        await watch.settled()
        await messages.aclose()
        _judge(first, soak, [watch])
        about = [line for line in watch.lines() if "spare-" in line]
        assert about
        assert not [line for line in about if "is not the QEMU of this VM" not in line]


def _judge(first: dict[str, str], soak: Soak, watches: list[Watch]) -> None:
    assert first == dict.fromkeys((check.name for check in chosen([], 1)), "")
    assert len(soak.rounds) >= MORE_ROUNDS
    assert [found for found in soak.rounds if any(found.values()) or len(found) != len(first) - 1] == []
    for watch in watches:
        assert watch.open_fds() == watch.fds
        assert watch.ram_maps() == watch.maps
        assert watch.grown_nbytes() < ROOM_NBYTES
        assert not [line for line in watch.lines() if "Traceback" in line or "never retrieved" in line]
        lines = [line for line in watch.lines() if " vdev.event: " not in line]  # those have a limit of their own
        assert len(lines) < LINES_A_MINUTE * (1 + SECONDS / 60)
