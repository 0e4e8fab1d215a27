"""The specification's gaps: what a request or a configuration access shows of each."""

from __future__ import annotations

from guest_tests.payload.direct.answers import Layout
from guest_tests.payload.direct.wire import (
    ATTACH_BYPASS,
    BYPASS_OFFSET,
    MAX_U64,
    MMIO,
    TAIL_NBYTES,
    Attach,
    Feature,
    Unmap,
)
from tests.qtest.asker import MSI, NOBODY, PAGE, RW, Asker, joined, probe, word, yes


@probe("G2")
def _(a: Asker) -> str:
    """MAP of the page above input_range; of one whose target leaves 64 bits"""
    a.attach()
    stop = a.viommu.config.input_range.stop
    return joined(a.map(stop), a.map(0, 2 * PAGE, phys=MAX_U64 - PAGE + 1))


@probe("G3")
def _(a: Asker) -> str:
    """MAP, then UNMAP, whose end is one page below its start"""
    a.attach()
    span = (5 * PAGE, -PAGE)
    return joined(a.map(*span), a.unmap(*span))


@probe("G4")
def _(a: Asker) -> str:
    """MAP of two pages, the second in the MSI region"""
    a.attach()
    return a.map(MSI - PAGE, 2 * PAGE)


@probe("G5")
def _(a: Asker) -> str:
    """MAP without READ and WRITE"""
    a.attach()
    return a.map(0, flags=0)


@probe("G6", without=Feature.MMIO)
def _(a: Asker) -> str:
    """MAP with MMIO, which was not accepted"""
    a.attach()
    return a.map(0, flags=RW | MMIO)


@probe("G7", without=Feature.BYPASS_CONFIG)
def _(a: Asker) -> str:
    """ATTACH with BYPASS where BYPASS_CONFIG was not accepted"""
    return a.attach(flags=ATTACH_BYPASS)


@probe("G9")
def _(a: Asker) -> str:
    """ATTACH, MAP, ATTACH to the same domain: is the page mapped still?"""
    return joined(a.attach(), a.map(0), a.attach(), a.mapped(0))


@probe("G10")
def _(a: Asker) -> str:
    """ATTACH in descriptors of one byte"""
    return a.say(Attach(domain=1, endpoint=a.endpoint), layout=Layout(piece_nbytes=1))


@probe("G11")
def _(a: Asker) -> str:
    """MAP to where there is no RAM"""
    a.attach()
    return a.map(0, phys=0xD0000000)


@probe("G12")
def _(a: Asker) -> str:
    """ATTACH with 8 bytes more to read; with 8 bytes more to write: its used length"""
    data = Attach(domain=1, endpoint=a.endpoint).pack()
    longer = a.say(data + bytes(8))
    if a.viommu.is_broken:
        a.viommu.start()
    answer = a.send(data, TAIL_NBYTES + 8)
    used = answer if isinstance(answer, str) else f"{answer.used_nbytes} bytes, status {answer.written[0]}"
    return joined(longer, used)


@probe("G13")
def _(a: Asker) -> str:
    """ATTACH with room for 3 bytes; was it performed?"""
    said = a.say(Attach(domain=1, endpoint=a.endpoint), 3)
    if a.viommu.is_broken:
        return said
    return joined(said, yes(a.map(0) == "OK"))


@probe("G14")
def _(a: Asker) -> str:
    """ATTACH of an unknown endpoint with an unknown flag; with a reserved byte set"""
    both = Attach(domain=1, endpoint=NOBODY, flags=2)
    return joined(a.say(both), a.say(Attach(domain=1, endpoint=NOBODY, reserved=b"\1\0\0\0")))


@probe("G15")
def _(a: Asker) -> str:
    """MAP with an unknown flag to an unknown domain; off the granule over a mapping; off the granule, bypass domain"""
    first = a.map(0, flags=8)
    a.attach()
    a.map(0)
    second = a.map(0x800, 0x1000)
    a.detach()
    a.attach(flags=ATTACH_BYPASS)
    return joined(first, second, a.map(0x800, 0x1000))


@probe("G16")
def _(a: Asker) -> str:
    """UNMAP of bytes 1 to 4999 where nothing is; of all 64 bits"""
    a.attach()
    return joined(a.unmap(1, 4999), a.say(Unmap(domain=1, virt_start=0, virt_end=MAX_U64)))


@probe("G17", without=Feature.MAP_UNMAP | Feature.PROBE)
def _(a: Asker) -> str:
    """MAP, UNMAP, PROBE of a driver that accepted neither"""
    a.attach()
    return joined(a.map(0), a.unmap(0), word(a.probe()))


@probe("G18", without=Feature.BYPASS_CONFIG)
def _(a: Asker) -> str:
    """Write 0 to `bypass` without BYPASS_CONFIG: what it shows then; to page_size_mask: has it changed?"""
    a.viommu.bypass = False
    shown = str(a.viommu.transport.read_config(BYPASS_OFFSET, 1))
    broken = "broken" if a.viommu.is_broken else "goes on"
    before = a.viommu.read_config().page_size_mask
    a.viommu.transport.write_config(0, 4, 0)
    return joined(shown, broken, "changed" if a.viommu.read_config().page_size_mask != before else "unchanged")


@probe("G19")
def _(a: Asker) -> str:
    """ATTACH to 5 with BYPASS: DETACH from 7, DETACH from 0"""
    return joined(a.attach(5, flags=ATTACH_BYPASS), a.detach(7), a.detach(0))


@probe("G24")
def _(a: Asker) -> str:
    """ATTACH with 128 KiB more to read"""
    return a.say(Attach(domain=1, endpoint=a.endpoint).pack() + bytes(128 << 10))
