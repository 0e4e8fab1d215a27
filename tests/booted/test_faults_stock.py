from __future__ import annotations
import re, time
from pathlib import Path
import pytest
from guest_tests.runner.handle import GuestOn
from guest_tests.payload.symbols import name_at

pytestmark = pytest.mark.guest
INSIDE = Path(__file__).parent / "inside"
CONFIG = Path(__file__).parents[2] / "guest_tests/suites/faults-stock/machine.yaml"

def where(guest, table, n=6):
    out = []
    for _ in range(n):
        regs = guest.qmp("human-monitor-command", **{"command-line": "info registers -a"})
        out.append([name_at(int(a, 16), table) or a for a in re.findall(r"RIP=([0-9a-f]+)", regs)])
        out[-1] += re.findall(r"RFL=(\S+)", regs) + re.findall(r"HLT=(\S+)", regs)
        time.sleep(.1)
    return out

def test_needs_reset(guest_on: GuestOn):
    guest = guest_on(CONFIG, files=INSIDE, driver="stock", append="iommu.strict=1")
    guest.call("stock_faults:start")
    table = guest.call("stock_faults:places", words=["viommu", "virtqueue", "vring", "spin_lock", "halt", "smp_call"])
    assert guest.call("stock_faults:copies")
    guest.faults.add("timer", "needs-reset")
    time.sleep(.5)
    guest.call("stock_faults:map_soon")
    time.sleep(1)
    for w in where(guest, table): print(w)
    print(guest.faults.clear())
    t = time.monotonic()
    for w in where(guest, table): print(w)
    guest.restart()
    print("restart", time.monotonic() - t)
    guest.call("stock_faults:start")
    assert guest.call("stock_faults:copies")
    t = time.monotonic()
    guest.faults.add("timer", "stall", seconds=10)
    print("stall added", time.monotonic() - t)
    assert guest.call("stock_faults:copies")
    print("stall", time.monotonic() - t)
    t = time.monotonic()
    guest.faults.add("timer", "die")
    guest._pool.end(guest._guest.machine)
    print(time.monotonic() - t, guest._guest.death, guest._guest.death.sections)
    assert 0
