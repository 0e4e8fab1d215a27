"""The specification's clauses: what a request or a configuration access shows of each."""

from __future__ import annotations

from guest_tests.payload.direct.wire import (
    ATTACH_BYPASS,
    BYPASS_OFFSET,
    PROPERTY,
    TAIL_NBYTES,
    Attach,
    Detach,
    Feature,
    Probe,
)
from tests.qtest.asker import MSI, NOBODY, PAGE, RW, Asker, joined, probe, resv, word, yes


@probe("D1")
def _(a: Asker) -> str:
    """MAP_UNMAP offered?"""
    return yes(bool(a.viommu.transport.offered() & Feature.MAP_UNMAP))


@probe("D2")
def _(a: Asker) -> str:
    """F_BYPASS offered?"""
    return yes(bool(a.viommu.transport.offered() & Feature.BYPASS))


@probe("D3")
def _(a: Asker) -> str:
    """F_BYPASS and F_BYPASS_CONFIG both offered?"""
    both = Feature.BYPASS | Feature.BYPASS_CONFIG
    return yes(a.viommu.transport.offered() & both == both)


@probe("D4")
def _(a: Asker) -> str:
    """The lowest bit of page_size_mask"""
    return f"{a.viommu.config.granule:#x}"


@probe("D5")
def _(a: Asker) -> str:
    """`bypass` before anybody wrote it"""
    return str(a.boot_bypass)


@probe("D6")
def _(a: Asker) -> str:
    """`bypass` after writing 0 and a device reset"""
    a.viommu.bypass = False
    a.viommu.start()
    return str(a.viommu.transport.read_config(BYPASS_OFFSET, 1))


@probe("D8")
def _(a: Asker) -> str:
    """Write 2 to `bypass`: what it shows then"""
    a.viommu.bypass = 2
    return joined(str(a.viommu.transport.read_config(BYPASS_OFFSET, 1)), "broken" if a.viommu.is_broken else "goes on")


@probe("D9")
def _(a: Asker) -> str:
    """ATTACH, device reset: MAP to the domain, DETACH"""
    a.attach()
    a.viommu.start()
    return joined(a.map(0), a.detach())


# requests


@probe("D10")
def _(a: Asker) -> str:
    """ATTACH, MAP, UNMAP, DETACH, all well"""
    return joined(a.attach(), a.map(0), a.unmap(0), a.detach())


@probe("D11")
def _(a: Asker) -> str:
    """A request of type 77"""
    return a.say(bytes([77]) + bytes(19))


@probe("D12")
def _(a: Asker) -> str:
    """ATTACH with reserved bytes of its head set"""
    return a.say(Attach(domain=1, endpoint=a.endpoint, head_reserved=b"\1\2\3"))


@probe("D13")
def _(a: Asker) -> str:
    """The reserved bytes of a tail"""
    answer = a.send(Attach(domain=1, endpoint=a.endpoint))
    return answer if isinstance(answer, str) else answer.written[1:].hex()


@probe("D15")
def _(a: Asker) -> str:
    """ATTACH of 19 bytes; a request of 3"""
    short = a.say(Attach(domain=1, endpoint=a.endpoint).pack()[:19])
    if a.viommu.is_broken:
        a.viommu.start()
    return joined(short, a.say(b"\1\0\0"))


# ATTACH


@probe("D16")
def _(a: Asker) -> str:
    """ATTACH with a reserved byte set"""
    return a.attach(reserved=b"\0\0\0\1")


@probe("D17")
def _(a: Asker) -> str:
    """ATTACH with an unknown flag"""
    return a.attach(flags=2)


@probe("D18")
def _(a: Asker) -> str:
    """ATTACH of an unknown endpoint"""
    return a.say(Attach(domain=1, endpoint=NOBODY))


@probe("D20")
def _(a: Asker) -> str:
    """ATTACH to domain 1, to it again with BYPASS, MAP to domain 1"""
    return joined(a.attach(), a.attach(flags=ATTACH_BYPASS), a.map(0))


@probe("D21")
def _(a: Asker) -> str:
    """ATTACH to 1, ATTACH to 2, MAP to 1, MAP to 2"""
    return joined(a.attach(1), a.attach(2), a.map(0, domain=1), a.map(0, domain=2))


@probe("D23")
def _(a: Asker) -> str:
    """ATTACH to domain 0xffffffff, MAP to it"""
    return joined(a.attach(0xFFFFFFFF), a.map(0, domain=0xFFFFFFFF))


@probe("D24")
def _(a: Asker) -> str:
    """MAP before ATTACH, ATTACH, MAP"""
    return joined(a.map(0), a.attach(), a.map(0))


# DETACH


@probe("D25")
def _(a: Asker) -> str:
    """ATTACH, DETACH with reserved bytes set"""
    return joined(a.attach(), a.detach(reserved=b"\1" * 8))


@probe("D26")
def _(a: Asker) -> str:
    """DETACH of an unknown endpoint"""
    return a.say(Detach(domain=1, endpoint=NOBODY))


@probe("D27")
def _(a: Asker) -> str:
    """DETACH of one that never was attached; ATTACH to 1, DETACH from 2; DETACH from 1 twice"""
    return joined(a.detach(), a.attach(), a.detach(2), a.detach(), a.detach())


@probe("D29")
def _(a: Asker) -> str:
    """MAP, DETACH the last endpoint, MAP; ATTACH to the same id: is it mapped?"""
    a.attach()
    a.map(0)
    a.detach()
    return joined(a.map(0), a.attach(), a.mapped(0))


# MAP


@probe("D30")
def _(a: Asker) -> str:
    """MAP off 4 KiB by its start, its target, its end"""
    a.attach()
    return joined(a.map(0x800, 0x800), a.map(0x2000, phys=0x800), a.map(0x4000, 0x800))


@probe("D31")
def _(a: Asker) -> str:
    """MAP twice"""
    a.attach()
    return joined(a.map(0), a.map(0))


@probe("D32")
def _(a: Asker) -> str:
    """MAP with an unknown flag"""
    a.attach()
    return a.map(0, flags=RW | 8)


@probe("D33")
def _(a: Asker) -> str:
    """MAP to an unknown domain"""
    return a.map(0)


@probe("D34")
def _(a: Asker) -> str:
    """ATTACH with BYPASS, MAP"""
    return joined(a.attach(flags=ATTACH_BYPASS), a.map(0))


@probe("D38")
def _(a: Asker) -> str:
    """MAP over the MSI region"""
    a.attach()
    return a.map(MSI)


# UNMAP


@probe("D39")
def _(a: Asker) -> str:
    """UNMAP with a reserved byte set: its status, is the page mapped still?"""
    a.attach()
    a.map(0)
    return joined(a.unmap(0, reserved=b"\0\0\0\1"), a.mapped(0))


@probe("D40")
def _(a: Asker) -> str:
    """UNMAP of an unknown domain"""
    return a.unmap(0)


@probe("D41")
def _(a: Asker) -> str:
    """ATTACH with BYPASS, UNMAP"""
    return joined(a.attach(flags=ATTACH_BYPASS), a.unmap(0))


@probe("D42")
def _(a: Asker) -> str:
    """UNMAP of page 0 and half of a mapping of pages 1 and 2: its status, is page 0 mapped still, is page 1?"""
    a.attach()
    a.map(0)
    a.map(PAGE, 2 * PAGE)
    return joined(a.unmap(0, 2 * PAGE), a.mapped(0), a.mapped(PAGE))


@probe("D43")
def _(a: Asker) -> str:
    """UNMAP of pages 0 to 4 where 1 and 3 are mapped: its status, is page 1 mapped still, is page 3?"""
    a.attach()
    a.map(PAGE)
    a.map(3 * PAGE)
    return joined(a.unmap(0, 5 * PAGE), a.mapped(PAGE), a.mapped(3 * PAGE))


@probe("D44")
def _(a: Asker) -> str:
    """The UNMAPs of the seven worked examples, in units of 4 KiB"""
    examples = [((), 5), ((10,), 10), ((5, 5), 10), ((10,), 5), ((5, 5), 5), ((5,), 10), ((5, -5, 5), 15)]
    words = []
    for sizes, npages in examples:
        a.attach()
        at = 0
        for size in sizes:
            if size > 0:
                a.map(at * PAGE, size * PAGE)
            at += abs(size)
        words.append(a.unmap(0, npages * PAGE))
        a.detach()
    return joined(*words)


# PROBE


@probe("D45")
def _(a: Asker) -> str:
    """PROBE with reserved bytes set"""
    size = a.viommu.config.probe_size
    return a.say(Probe(endpoint=a.endpoint, reserved=b"\1" * 64), size + TAIL_NBYTES)


@probe("D46")
def _(a: Asker) -> str:
    """PROBE of an unknown endpoint"""
    return a.say(Probe(endpoint=NOBODY), a.viommu.config.probe_size + TAIL_NBYTES)


@probe("D48")
def _(a: Asker) -> str:
    """The type field of the first property"""
    answer = a.probe()
    return answer if isinstance(answer, str) else f"{PROPERTY.unpack_from(answer.written)[0]:#06x}"


@probe("D49")
def _(a: Asker) -> str:
    """`length` of the first property"""
    answer = a.probe()
    return answer if isinstance(answer, str) else str(PROPERTY.unpack_from(answer.written)[1])


@probe("D51")
def _(a: Asker) -> str:
    """PROBE with room for 24 bytes of properties: its answer, properties written?"""
    answer = a.probe(24)
    if isinstance(answer, str):
        return answer
    return joined(word(answer), yes(bool(resv(answer))))


@probe("D52")
def _(a: Asker) -> str:
    """Bytes behind the last property that are not zero"""
    answer = a.probe()
    if isinstance(answer, str):
        return answer
    return str(sum(byte != 0 for byte in answer.written[24 * len(resv(answer)) : -TAIL_NBYTES]))


@probe("D53")
def _(a: Asker) -> str:
    """The reserved bytes of RESV_MEM"""
    return joined(*(region.reserved.hex() for region in resv(a.probe())))


@probe("D54")
def _(a: Asker) -> str:
    """MSI regions of an endpoint"""
    return str(sum(region.subtype == 1 for region in resv(a.probe())))
