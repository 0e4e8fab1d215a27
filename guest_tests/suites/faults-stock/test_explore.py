from __future__ import annotations
import os, time, contextlib, errno
import pytest
from guest_tests.payload import accel, guest, vfio, checks_hwrng, symbols
from guest_tests.payload.lab import PAGE, MIB, copy, RING_IOVA, SOURCE_IOVA, TARGET_IOVA, Lab
from guest_tests.payload.worker import Worker
from guest_tests.payload.stock import PCI, driver_of, group_of, give_back, expect_random_bytes_of, rng_current
from guest_tests.payload.stock_fixtures import opened_lab
from looks import read_hwrng

FILL = lambda iova=TARGET_IOVA, n=64, arg=0x1111111111111111: accel.Operation(accel.FILL, dst=iova, nbytes=n, arg=arg)


def trying(f):
    try:
        return f()
    except OSError as e:
        return f"{errno.errorcode[e.errno]} {e}" if e.errno else repr(e)
    except Exception as e:
        return repr(e)


@pytest.fixture(autouse=True)
def tell(kernel_log):
    m = kernel_log.mark()
    yield
    print("KERNEL:\n" + "\n".join(kernel_log.find("", since=m)[:60]))
    assert 0


def test_inval(lab, faults, unit, stock):
    a, b = vfio.Buffer(PAGE), vfio.Buffer(PAGE)
    lab.container.map(TARGET_IOVA, a, 3)
    r = faults.add("invalidation", "stale", match={"type": "UNMAP", "endpoint": "accel0"}, seconds=3)
    lab.container.unmap(TARGET_IOVA, PAGE)
    print("stale", r.fired, lab.engine.run(FILL()).describe(), set(a.memory[:64]))
    lab.container.map(TARGET_IOVA, b, 3)
    print("remapped", lab.engine.run(FILL(arg=0x2222222222222222)).describe(), set(a.memory[:64]), set(b.memory[:64]))
    print(faults.clear())
    print("cleared", lab.engine.run(FILL(arg=0x3333333333333333)).describe(), set(a.memory[:64]), set(b.memory[:64]))
    lab.container.unmap(TARGET_IOVA, PAGE)


def test_delay_and_early(lab, faults, unit):
    a = vfio.Buffer(PAGE)
    for early in (False, True):
        a.fill(0)
        lab.container.map(TARGET_IOVA, a, 3)
        d = faults.add(
            "dma",
            "delay",
            match={"endpoint": "accel0", "access": "write", "iova": hex(TARGET_IOVA)},
            seconds=1.0,
            times=1,
        )
        if early:
            e = faults.add("invalidation", "early", match={"endpoint": "accel0"})
        i = lab.engine.submit(FILL())
        time.sleep(0.2)
        t = time.monotonic()
        print("early" if early else "late", "held", d.held, "status", lab.engine.status_of(i))
        lab.container.unmap(TARGET_IOVA, PAGE)
        print("unmapped after", time.monotonic() - t, lab.engine.status_of(i), set(a.memory[:64]))
        time.sleep(1.2)
        print("then", lab.engine.status_of(i), set(a.memory[:64]))
        faults.clear()


def test_translation(lab, faults, unit, stock, kernel_log):
    a = vfio.Buffer(4 * PAGE)
    lab.container.map(TARGET_IOVA, a, 3)
    for do, kw in (
        ("unmapped", {}),
        ("no-permission", {}),
        ("wrong-domain", {"domain": 7777}),
        ("aperture", {"end": 0x10000000}),
        ("aperture", {"end": TARGET_IOVA + 63}),
    ):
        with faults.injected("translation", do, match={"endpoint": "accel0", "iova": hex(TARGET_IOVA)}, **kw) as r:
            m = kernel_log.mark()
            print(do, kw, lab.engine.run(FILL(n=PAGE)).describe(), r.fired)
            time.sleep(0.1)
            print(kernel_log.find("", since=m))
    other = vfio.Buffer(4 * PAGE)
    with contextlib.closing(vfio.Container(lab.accelerators[stock.bdf("accel1")])) as c:
        with c.mapped(TARGET_IOVA, other):
            dom = unit.domain_of(stock.bdf("accel1"))
            with faults.injected(
                "translation", "wrong-domain", match={"endpoint": "accel0", "iova": hex(TARGET_IOVA)}, domain=dom.id
            ) as r:
                print(
                    dom,
                    lab.engine.run(FILL(arg=0x7777777777777777)).describe(),
                    r.fired,
                    set(a.memory[:64]),
                    set(other.memory[:64]),
                )
    lab.container.unmap(TARGET_IOVA, 4 * PAGE)


def test_dma(lab, faults, unit, stock, kernel_log):
    a = vfio.Buffer(4 * PAGE)
    lab.container.map(TARGET_IOVA, a, 3)
    for do, kw in (
        ("unsupported-request", {}),
        ("completer-abort", {}),
        ("delay", {"seconds": 0.5}),
        ("partial", {"nbytes": 100}),
        ("corrupt", {}),
        ("corrupt", {"offset": 8, "nbytes": 2}),
    ):
        a.fill(0)
        with faults.injected("dma", do, match={"endpoint": "accel0", "iova": hex(TARGET_IOVA)}, **kw) as r:
            m = kernel_log.mark()
            t = time.monotonic()
            print(
                do,
                kw,
                lab.engine.run(FILL(n=PAGE)).describe(),
                r.fired,
                time.monotonic() - t,
                bytes(a.memory[:12]),
                bytes(a.memory[96:112]),
            )
            time.sleep(0.1)
            print(kernel_log.find("", since=m))
            print(hex(lab.engine.registers.read32(accel.STATUS)), lab.engine.registers.read32(accel.ERROR))
    lab.container.unmap(TARGET_IOVA, 4 * PAGE)


def test_dma_rng(faults, unit, stock, kernel_log):
    for at, do, kw in (
        ("dma", "delay", {"seconds": 0.5}),
        ("dma", "corrupt", {}),
        ("dma", "unsupported-request", {}),
        ("dma", "completer-abort", {}),
        ("dma", "partial", {"nbytes": 16}),
        ("translation", "unmapped", {}),
        ("invalidation", "stale", {}),
    ):
        with faults.injected(at, do, match={"endpoint": "rng0"}, times=1, **kw) as r:
            t = time.monotonic()
            print(
                at,
                do,
                read_hwrng(),
                time.monotonic() - t,
                r.fired,
                [x["text"] for x in r.log()],
                unit.function("rng0")["needs-reset"],
            )
            print("again", read_hwrng())
            give_back(stock.bdf("rng0"))
            print("given back", read_hwrng())


def test_events(lab, faults, unit, stock, kernel_log):
    for do, kw in (
        ("drop", {}),
        ("duplicate", {}),
        ("delay", {"seconds": 0.5}),
        ("unknown-reason", {}),
        ("unknown-reason", {"reason": 0}),
    ):
        with faults.injected("event", do, match={"endpoint": "accel0"}, **kw) as r:
            m = kernel_log.mark()
            print(do, kw, lab.engine.run(FILL()).describe(), r.fired)
            print(kernel_log.find("", since=m))
            time.sleep(0.7)
            print(kernel_log.find("", since=m))


def test_flood(lab, faults, unit, stock, kernel_log):
    for kw in ({}, {"records": 20}, {"records": 3000}):
        m = kernel_log.mark()
        t = time.monotonic()
        r = faults.add("timer", "flood", unit="iommu0", **kw)
        time.sleep(1)
        s = unit.state()
        print(
            kw,
            r.log(),
            s["pending_faults"],
            s["dropped-faults"],
            kernel_log.find("", since=m)[:14],
            len(kernel_log.find("", since=m)),
        )
        m = kernel_log.mark()
        time.sleep(5)
        print(lab.engine.run(FILL()).describe())
        time.sleep(0.2)
        print(kernel_log.find("", since=m))


def test_interrupts(lab, faults, unit, stock, kernel_log):
    with faults.injected("interrupt", "lose", match={"function": "iommu0"}, times=1) as r:
        m = kernel_log.mark()
        print("lose", lab.engine.run(FILL()).describe(), r.fired)
        time.sleep(0.5)
        print(kernel_log.find("", since=m))
        print("lose", lab.engine.run(FILL(0x30000000)).describe(), r.fired, [x["fields"] for x in r.log()])
        time.sleep(0.5)
        print(kernel_log.find("", since=m))
    with faults.injected("interrupt", "delay", match={"function": "iommu0"}, times=1, seconds=0.5) as r:
        m = kernel_log.mark()
        print("delay", lab.engine.run(FILL()).describe(), r.fired)
        time.sleep(0.2)
        print(kernel_log.find("", since=m))
        time.sleep(0.5)
        print(kernel_log.find("", since=m))
    with faults.injected("interrupt", "lose", match={"function": "rng0"}, times=1) as r:
        print("rng lose", read_hwrng(), r.fired, [x["fields"] for x in r.log()], "again", read_hwrng())
        faults.add("timer", "spurious", function="rng0", vector=1 if stock.facts["attach"] == "vfio-user" else 0)
        time.sleep(0.2)
        print("after spurious", read_hwrng())
    with faults.injected("interrupt", "delay", match={"function": "rng0"}, seconds=0.5, times=1) as r:
        t = time.monotonic()
        print("rng delay", read_hwrng(), time.monotonic() - t, r.fired)
