"""Slots in a configuration, what they become for QEMU, and a configuration whose endpoints come and go."""

from __future__ import annotations

from itertools import pairwise
from struct import unpack_from

import pytest

from vdev.config import Config, parse_config, slots_of, with_endpoint, without_endpoint
from vdev.endpoints.accelerator import DEVMEM_MAX
from vdev.errors import ConfigError
from vdev.qemu.machine import MachinePaths, expected_functions, qemu_arguments, viot_table
from vdev.qemu.restorable import restored_arguments

UNITS = "units: [{name: iommu0, bdf: 00:10.0, probe_size: 72}, {name: iommu1, bdf: 00:11.0}]\n"
TEXT = f"""{UNITS}
endpoints: [{{name: one, bdf: 01:00.0}}, {{name: flat, bdf: 00:1e.0}}]
slots: [{{bdf: 03:00.0, unit: iommu1}}, {{bdf: 02:00.0}}]
"""
PATHS = MachinePaths.in_directory("/run/v", "/boot/vmlinuz", "/boot/initrd")
MSI_REGION_NBYTES = 24


@pytest.fixture
def config() -> Config:
    return parse_config(TEXT, "x.yaml")


def refusal(slots: str, endpoints: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"{UNITS}endpoints: [{endpoints}]\nslots: [{slots}]", "x.yaml")
    return str(caught.value)


def ports(argv: list[str]) -> list[str]:
    return [value for option, value in pairwise(argv) if option == "-device" and value.startswith("pcie-root-port")]


def ranges(config: Config) -> dict[int, int]:
    """Endpoint -> offset of the unit in the VIOT table."""
    table = viot_table(config)
    count, at = unpack_from("<HH", table, 36)
    found = {}
    for _ in range(count):
        kind, length = unpack_from("<BxH", table, at)
        if kind == 1:
            start, _, _, first, last, output = unpack_from("<IHHHHH", table, at + 4)
            assert start == first == last
            found[start] = output
        at += length
    return found


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ("{bdf: 00:12.0}", "slots[0].bdf: 00:12.0 is on bus 00, which has no hot-plug"),
        ("{bdf: 02:00.0}", "slots[0].bdf: 02:00.0 should be 01:00.0"),
        ("{bdf: 01:00.0}, {bdf: 01:00.0}", "slots[1].bdf: 01:00.0 is already the address of slots[0]"),
        ("{bdf: 01:00.0, unit: iommu2}", "slots[0].unit: there is no unit 'iommu2'"),
        ("{bdf: here}", "slots[0].bdf: 'here': not a PCI address"),
        ("{}", "slots[0].bdf: this key is missing"),
        ("{bdf: 01:00.0, name: x}", "slots[x].name: there is no such key"),
    ],
)
def test_a_wrong_slot_is_refused_with_its_place(slots: str, words: str) -> None:
    assert words in refusal(slots)


def test_slots_and_endpoints_share_the_numbers_of_buses() -> None:
    endpoint = "{name: e0, bdf: 01:00.0}"

    assert "slots[0].bdf: 01:00.0 is already the address of endpoints[e0]" in refusal("{bdf: 01:00.0}", endpoint)
    assert "slots[0].bdf: 03:00.0 should be 02:00.0" in refusal("{bdf: 03:00.0}", endpoint)


def test_more_slots_than_root_ports_are_refused() -> None:
    said = refusal(",".join(f"{{bdf: '{bus:02x}:00.0'}}" for bus in range(1, 114)))

    assert "113 buses are needed, 112 are possible" in said
    assert "leave out some slots" in said


def test_a_slot_has_a_root_port_and_a_range_of_its_own_and_no_device(config: Config) -> None:
    argv = qemu_arguments(config, PATHS, "tcg")

    assert [port.split(",")[1] for port in ports(argv)] == ["id=vdev.port1", "id=vdev.port2", "id=vdev.port3"]
    found = ranges(config)
    assert sorted(found) == [0xF0, 0x100, 0x200, 0x300]
    assert found[0x200] == found[0x100] != found[0x300]
    assert set(expected_functions(config)) == {"iommu0", "iommu1", "one", "flat"}


def test_only_ports_of_a_machine_with_slots_have_hot_plug(config: Config) -> None:
    without = parse_config(f"{UNITS}endpoints: [{{name: one, bdf: 01:00.0}}]", "x.yaml")

    assert all("hotplug=on" in port for port in ports(qemu_arguments(config, PATHS, "tcg")))
    assert all("hotplug=off" in port for port in ports(qemu_arguments(without, PATHS, "tcg")))
    assert all("hotplug=on" in port for port in ports(restored_arguments(without, PATHS, "tcg"))), "for late units"


def test_ports_of_a_machine_with_slots_have_room_for_the_largest_device_memory(config: Config) -> None:
    found = ports(qemu_arguments(config, PATHS, "tcg"))

    assert all(port.endswith(f",pref64-reserve={2 * DEVMEM_MAX}") for port in found)
    assert not any(
        "reserve=" in port.replace("io-reserve=0", "") for port in ports(restored_arguments(config, PATHS, "tcg"))
    )


def test_the_saved_machine_has_the_ports_of_slots_before_those_of_its_units(config: Config) -> None:
    assert len(ports(restored_arguments(config, PATHS, "tcg"))) == 3 + 2


def test_an_endpoint_takes_the_first_free_slot_and_its_unit(config: Config) -> None:
    changed, endpoint = with_endpoint(config, {"name": "two"})

    assert (endpoint.bdf, endpoint.unit, endpoint.model) == ("02:00.0", "iommu0", "accelerator")
    assert [slot.bdf for slot in changed.slots] == ["03:00.0"]
    assert ranges(changed) == ranges(config)
    assert (config.slots, config.endpoints) == (parse_config(TEXT, "x").slots, parse_config(TEXT, "x").endpoints)


def test_an_endpoint_may_name_its_slot(config: Config) -> None:
    _, endpoint = with_endpoint(config, {"name": "two", "bdf": "03:00.0"})

    assert (endpoint.bdf, endpoint.unit) == ("03:00.0", "iommu1")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "one"}, "'one' is also endpoints[0]"),
        ({"name": "iommu1"}, "'iommu1' is also units[1]"),
        ({"name": "qmp"}, "'qmp' is one of vdev's own sockets"),
        ({"name": "../x"}, "'../x' is not a name"),
        ({"name": "two", "bdf": "01:00.0"}, "bdf: 01:00.0 is taken by one (free slots: 02:00.0, 03:00.0)"),
        ({"name": "two", "bdf": "04:00.0"}, "bdf: 04:00.0 is no slot (free slots: 02:00.0, 03:00.0)"),
        ({"name": "two", "bdf": "00:12.0"}, "bdf: 00:12.0 is no slot"),
        ({"name": "two", "bdf": "x"}, "not a PCI address"),
        ({"name": "two", "options": 7}, "endpoints[two].options: 7 is a whole number, not keys with values"),
        ({"name": "two", "options": {"devmem": []}}, "endpoints[two].options.devmem"),
        ({"name": "two", "reserved": [{"start": 1, "end": 4095}]}, "does not start and stop on the granule"),
        (
            {"name": "two", "reserved": [{"start": 0xFEE00000, "end": 0xFEEFFFFF}]},
            "0xfee00000..0xfeefffff overlaps endpoints[two].reserved[0]",
        ),
        ({"name": "two", "reserved": [{"start": 0, "end": 4095, "kind": "msi"}]}, "more than one region is of kind"),
        (
            {"name": "two", "reserved": [{"start": n << 12, "end": (n << 12) + 4095} for n in range(3)]},
            "72 cannot hold the 4 reserved region(s)",
        ),
    ],
)  # fmt: skip
def test_an_endpoint_that_breaks_a_rule_of_configurations_is_refused(
    config: Config, given: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        with_endpoint(config, given)

    assert words in str(caught.value)


def test_when_all_slots_are_taken_no_more_endpoints_come(config: Config) -> None:
    config, _ = with_endpoint(config, {"name": "two"})
    config, _ = with_endpoint(config, {"name": "three"})

    with pytest.raises(ConfigError, match=r"slots: all 3 slots are taken \(unplug an endpoint"):
        with_endpoint(config, {"name": "four"})


def test_without_slots_there_is_no_place() -> None:
    with pytest.raises(ConfigError, match="slots: there are none"):
        with_endpoint(parse_config(UNITS, "x.yaml"), {"name": "one"})


def test_the_place_of_an_endpoint_that_left_takes_another(config: Config) -> None:
    config = without_endpoint(config, "one")

    assert [(slot.bdf, there.name if there else None) for slot, there in slots_of(config)] == [
        ("01:00.0", None),
        ("02:00.0", None),
        ("03:00.0", None),
    ]
    _, endpoint = with_endpoint(config, {"name": "one"})
    assert endpoint.bdf == "01:00.0"


def test_an_endpoint_on_the_root_bus_cannot_leave(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"flat: 00:1e\.0 is on bus 00, which has no hot-plug"):
        without_endpoint(config, "flat")


def test_an_endpoint_that_is_not_there_cannot_leave(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"there is no endpoint 'two' \(there are: one, flat\)"):
        without_endpoint(config, "two")


def test_the_traces_filter_may_name_an_endpoint_that_left() -> None:
    config = parse_config(f"{TEXT}trace: {{endpoints: [one]}}", "x.yaml")

    _, endpoint = with_endpoint(without_endpoint(config, "one"), {"name": "two"})

    assert endpoint.bdf == "01:00.0"
