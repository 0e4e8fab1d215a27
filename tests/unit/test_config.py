"""Configurations: what is accepted, and how a refusal names the key, the value and the cure."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vdev.config import config_warnings, format_bdf, load_config, parse_bdf, parse_config, parse_size
from vdev.config.text import parse_yaml
from vdev.errors import ConfigError

CONFIGS = Path(__file__).parent.parent.parent / "configs"
UNIT = "{name: iommu0, bdf: 00:10.0}"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unit(words: str) -> str:
    return refusal(f"units: [{{name: iommu0, {words}}}]")


def endpoint(words: str, more: str = "") -> str:
    return refusal(f"units: [{UNIT}]\nendpoints: [{{name: e0, {words}}}{more}]")


def vm(words: str) -> str:
    return refusal(f"units: [{UNIT}]\nvm: {{{words}}}")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_loads_and_warns_of_nothing(path: Path) -> None:
    assert config_warnings(load_config(path)) == []


def test_defaults_fill_what_is_left_out() -> None:
    config = parse_config("units: [{name: iommu0}]", "x.yaml")
    assert config.units[0].bdf == "00:10.0"
    assert config.vm.memory == "512M"
    assert config.endpoints == ()


def test_an_unquoted_address_is_not_a_number_in_base_60() -> None:
    text = f"units: [{UNIT}]\nendpoints: [{{name: e0, bdf: 01:00.0}}]"
    assert parse_config(text, "x.yaml").endpoints[0].bdf == "01:00.0"


def test_an_unquoted_on_is_the_word_on() -> None:
    config = parse_config("units: [{name: iommu0, bypass: off}]", "x.yaml")
    assert config.units[0].bypass == "off"


def test_json_is_accepted() -> None:
    assert parse_config('{"units": [{"name": "iommu0", "mmio": false}]}', "x.json").units[0].mmio is False


def test_a_duplicate_key_is_refused_with_its_path_and_lines() -> None:
    said = refusal("units:\n  - name: iommu0\n    mmio: true\n    mmio: false\n")
    assert said == "x.yaml: units[iommu0].mmio: given twice, in lines 3 and 4 (keep one of them)"


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    assert unit("granul: 4K") == "x.yaml: units[iommu0].granul: there is no such key (did you mean granule?)"
    assert vm("memroy: 1G") == "x.yaml: vm.memroy: there is no such key (did you mean memory?)"


def test_an_unknown_key_like_no_other_is_refused_with_all_known_ones() -> None:
    assert "known here: vm, sockets, units, endpoints" in refusal(f"units: [{UNIT}]\nzzz: 1")


def test_a_value_of_the_wrong_type_is_refused_with_path_and_value() -> None:
    assert vm("cpus: many") == "x.yaml: vm.cpus: 'many' is text, not a whole number"
    assert "units[iommu0].mode: 'loose' is not a possible value (one of compat, strict)" in unit("mode: loose")
    assert "units[iommu0].reserved[0].end" in unit("reserved: [{start: 0, end: x}]")


def test_a_wrong_value_in_a_section_that_may_be_left_out_is_refused_like_any_other() -> None:
    assert "x.yaml: trace.records: 'many' is text, not a whole number" in refusal(
        f"units: [{UNIT}]\ntrace: {{records: many}}"
    )
    assert "x.yaml: trace.record: there is no such key (did you mean records?)" in refusal(
        f"units: [{UNIT}]\ntrace: {{record: 5}}"
    )


def test_missing_units_are_refused() -> None:
    assert "x.yaml: units: this key is missing" in refusal("vm: {name: a}")
    assert "x.yaml: units: the list is empty" in refusal("units: []")


@pytest.mark.parametrize("text", ["a: [", "\ta: 1", "a: 1\n---\nb: 2", "a: !!python/name:os.system x", "a: 0x_"])
def test_what_is_not_yaml_is_refused_in_one_line(text: str) -> None:
    assert "x.yaml: the file: not valid YAML" in refusal(text)


@pytest.mark.parametrize("text", ["a: !!timestamp x", "a: !!int ''", "a: !!bool x", "a: !!set {b}", "a: !!binary QQ=="])
def test_a_type_that_the_value_does_not_show_is_refused_in_one_line(text: str) -> None:
    assert "not valid YAML at line 1: what stands there is not of the type !!" in refusal(text)


def test_a_list_that_is_called_a_text_is_refused() -> None:
    assert "not valid YAML" in refusal("a: !!str [b]")
    assert "the key in line 1 is not a word" in refusal("? !!str [b]\n: 1")


@pytest.mark.parametrize("text", ["a: \0", "a: \x1b", "\x7f: 1"])
def test_a_file_with_a_control_character_is_refused_in_one_line(text: str) -> None:
    assert "not valid YAML" in refusal(text)


@pytest.mark.parametrize("escape", [r"\0", r"\x1b", r"\ud800", r"\L", r"\x7f"])
def test_a_text_that_no_argument_can_hold_is_refused(escape: str) -> None:
    assert "the text has the character U+" in vm(f'append: "a{escape}"')


def test_a_number_that_is_too_long_to_be_shown_is_refused() -> None:
    assert "is no number vdev can read" in vm(f"cpus: 0x{'f' * 5000}")
    assert "is not a size" in vm(f"memory: '{'9' * 5000}'")


def test_an_option_of_more_than_64_bits_is_refused() -> None:
    assert "endpoints[e0].options.devmem: 18446744073709551616 has more than 64 bits" in endpoint(
        "options: {devmem: 0x10000000000000000}"
    )


def test_what_is_nested_deeper_than_python_goes_is_refused() -> None:
    assert "nested more than 16 deep" in refusal("[" * 5000)


def test_aliases_of_aliases_are_refused_before_they_take_for_ever() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))

    assert "more than 200000 values in one file" in refusal(bomb)


def test_an_empty_file_is_refused() -> None:
    assert "x.yaml: the file: is empty" in refusal("# nothing\n")


def test_an_alias_that_contains_itself_is_refused() -> None:
    assert "nested more than" in refusal("a: &x [*x]")


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_config(tmp_path / "nowhere.yaml")


def test_scalars_are_those_of_yaml_1_2() -> None:
    values = parse_yaml("[yes, true, 010, 0x10, 1.5, ~, 1_000, 12:30, 2020-01-01, 1e3, 2.5e-1, e3]")
    assert values == ["yes", True, "010", 16, 1.5, None, 1000, "12:30", "2020-01-01", 1000.0, 0.25, "e3"]


def test_a_time_reads_the_same_from_the_copy_the_backend_is_given() -> None:
    config = parse_config(f"units: [{UNIT}]\nvm: {{boot_timeout: 10000000000000000.0}}", "x.yaml")

    assert parse_config(msgspec.json.encode(config).decode(), "config.json") == config


@pytest.mark.parametrize(
    ("text", "nbytes"), [("4K", 4096), ("1", 1), (17, 17), ("512M", 512 << 20), ("1 GiB", 1 << 30), ("0x1000", 4096)]
)
def test_a_size_is_a_number_with_a_binary_suffix(text: int | str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "K", "-1", -1, "4Q", "1.5K", "4 K B"])
def test_what_is_not_a_size_is_refused(text: int | str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


def test_an_address_survives_the_round_trip() -> None:
    assert parse_bdf("01:00.0") == 0x100
    assert parse_bdf("00:1f.7") == 0xFF
    assert format_bdf(parse_bdf("fe:1d.3")) == "fe:1d.3"


@pytest.mark.parametrize("text", ["1:0.0", "00:20.0", "00:00.8", "0000:00:01.0", "00:10", "", "\u0660\u0660:10.0"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"bdf: '.*write BUS:SLOT\.FUNCTION"):
        parse_bdf(text)


@pytest.mark.parametrize(
    ("bdf", "words"),
    [
        ("00:00.0", "this slot is the chipset's"), ("00:1f.0", "this slot is the chipset's"),
        ("00:01.0", "this slot is virtio-serial's"), ("00:02.0", "this slot is the root ports'"),
        ("00:0f.0", "this slot is the root ports'"), ("00:10.1", "is not function 0"), ("01:00.0", "is not on bus 00"),
        ("00:20.0", "slots end at 1f"), ("here", "not a PCI address"),
    ],
)  # fmt: skip
def test_a_unit_sits_in_a_free_slot_of_the_root_bus(bdf: str, words: str) -> None:
    assert words in unit(f"bdf: '{bdf}'")


def test_two_functions_at_one_address_are_refused() -> None:
    said = endpoint("bdf: 00:10.0")
    assert "endpoints[e0].bdf: 00:10.0 is already the address of units[iommu0]" in said


@pytest.mark.parametrize("bdf", ["02:00.0", "01:01.0", "01:00.1"])
def test_endpoint_buses_are_those_firmware_will_give(bdf: str) -> None:
    assert f"endpoints[e0].bdf: {bdf} should be 01:00.0" in endpoint(f"bdf: {bdf}")


def test_a_gap_in_the_buses_is_refused() -> None:
    said = endpoint("bdf: 03:00.0", ", {name: e1, bdf: 01:00.0}")
    assert "endpoints[e0].bdf: 03:00.0 should be 02:00.0" in said


def test_more_buses_than_root_ports_are_refused() -> None:
    endpoints = "".join(f"- {{name: e{bus}, bdf: '{bus:02x}:00.0'}}\n" for bus in range(1, 114))
    assert "113 buses are needed, 112 are possible" in refusal(f"units: [{UNIT}]\nendpoints:\n{endpoints}")


def test_an_endpoint_may_sit_on_the_root_bus() -> None:
    config = parse_config(f"units: [{UNIT}]\nendpoints: [{{name: e0, bdf: 00:1e.0}}]", "x.yaml")
    assert config.endpoints[0].bdf == "00:1e.0"


def test_a_name_twice_is_refused() -> None:
    said = refusal(f"units: [{UNIT}]\nendpoints: [{{name: iommu0, bdf: 01:00.0}}]")
    assert "endpoints[0].name: 'iommu0' is also units[0]" in said


@pytest.mark.parametrize("name", ["Upper", "0first", "a" * 32, "a/b", "a.b", ""])
def test_a_name_is_fit_for_files(name: str) -> None:
    assert "units[0].name:" in refusal(f"units: [{{name: '{name}'}}]")


def test_a_name_of_our_own_sockets_is_refused() -> None:
    assert "one of vdev's own sockets" in refusal("units: [{name: control}]")


def test_an_unknown_unit_is_refused_with_the_nearest() -> None:
    assert "endpoints[e0].unit: there is no unit 'iommu9' (did you mean iommu0?)" in endpoint("unit: iommu9")


@pytest.mark.parametrize("granule", ["3K", "0", "0x8000000000000000", "-4096"])
def test_a_granule_is_a_power_of_two(granule: str) -> None:
    assert "units[iommu0].granule" in unit(f"granule: {granule}")


def test_a_granule_of_one_byte_is_accepted() -> None:
    assert parse_config("units: [{name: iommu0, granule: 1}]", "x.yaml").units[0].granule == 1


@pytest.mark.parametrize(
    "ends", ["[1, 0xffffffff]", "[0, 0x1000]", "[0x2000, 0xfff]", "[0, 0x1ffffffffffffffff]", "[-4096, 0xfff]"]
)
def test_an_input_range_rises_on_the_granule(ends: str) -> None:
    assert "units[iommu0].input_range" in unit(f"input_range: {ends}")


def test_the_whole_address_space_is_an_input_range() -> None:
    config = parse_config("units: [{name: iommu0, input_range: [0, 0xffffffffffffffff]}]", "x.yaml")
    assert config.units[0].input_range[1] == 2**64 - 1


@pytest.mark.parametrize("ends", ["[5, 4]", "[0, 0x100000000]"])
def test_a_domain_range_rises_within_32_bits(ends: str) -> None:
    assert "units[iommu0].domain_range" in unit(f"domain_range: {ends}")


def test_reserved_regions_are_aligned() -> None:
    assert "units[iommu0].reserved[0]" in unit("reserved: [{start: 0x1001, end: 0x1fff}]")


def test_d54_an_endpoint_has_one_msi_region_at_most() -> None:
    said = endpoint("reserved: [{start: 0x1000, end: 0x1fff, kind: msi}]")  # the unit has one as a PC has it
    assert "endpoints[e0].reserved: more than one region is of kind msi" in said


def test_d55_reserved_regions_do_not_overlap_those_of_the_unit() -> None:
    said = endpoint("reserved: [{start: 0xfee00000, end: 0xfee00fff}]")
    assert "overlaps endpoints[e0].reserved[0], which is 0xfee00000..0xfee00fff" in said


def test_the_probe_answer_must_hold_the_reserved_regions_of_every_endpoint() -> None:
    said = refusal(
        "units: [{name: iommu0, probe_size: 24}]\n"
        "endpoints: [{name: e0, bdf: 01:00.0, reserved: [{start: 0, end: 0xfff}]}]"
    )
    assert (
        "units[iommu0].probe_size: 24 cannot hold the 2 reserved region(s) of endpoints[e0] (give at least 48" in said
    )


def test_the_largest_request_must_hold_a_probe() -> None:
    assert "limits.max_request_nbytes: 100 cannot hold a PROBE" in unit("limits: {max_request_nbytes: 100}")


def test_a_limit_of_zero_is_refused() -> None:
    assert "units[iommu0].limits.max_domains: 0 is not in 1..4294967296" in unit("limits: {max_domains: 0}")


@pytest.mark.parametrize("memory", ["64M", "2T", "129536K", "lots"])
def test_memory_is_whole_mebibytes_that_a_guest_boots_in(memory: str) -> None:
    assert "x.yaml: vm.memory" in vm(f"memory: {memory}")


@pytest.mark.parametrize("words", ["cpus: 0", "boot_timeout: 0", "kernel: clod", "accel: hvf", "name: 'a b'"])
def test_other_values_of_the_vm_are_checked(words: str) -> None:
    assert f"x.yaml: vm.{words.partition(':')[0]}" in vm(words)


def test_a_misspelt_kernel_is_answered_with_the_nearest() -> None:
    assert "did you mean cloud?" in vm("kernel: clod")


@pytest.mark.parametrize("argument", ["-m", "--accel", "-machine", "-append"])
def test_arguments_that_vdev_decides_are_refused(argument: str) -> None:
    assert f"vm.extra_args[0]: {argument} is decided by vdev" in vm(f"extra_args: ['{argument}', x]")


def test_an_iommu_of_qemus_own_is_refused() -> None:
    assert "vm.extra_args[1]" in vm("extra_args: [-device, virtio-iommu-pci]")


def test_ram_that_may_shrink_is_refused_unless_the_user_says_so_and_is_then_warned() -> None:
    accepted = parse_config("vm: {unsealed_ram: allow}\nunits: [{name: iommu0}]", "x.yaml")

    assert parse_config("units: [{name: iommu0}]", "x.yaml").vm.unsealed_ram == "refuse"
    assert ["SIGBUS" in line for line in config_warnings(accepted)] == [True]


def test_surprises_for_linux_are_warned_of() -> None:
    text = "units: [{name: iommu0, granule: 64K, domain_range: [1, 9], reserved: []}]"
    warnings = config_warnings(parse_config(text, "x.yaml"))
    assert [line.partition(":")[0] for line in warnings] == [
        "units[iommu0].granule", "units[iommu0].domain_range", "units[iommu0].reserved",
    ]  # fmt: skip


TRACED = "units: [{name: iommu0}]\nendpoints: [{name: accel0}]\ntrace: "


def test_the_trace_is_off_unless_asked_for_and_in_memory_without_a_file() -> None:
    assert parse_config("units: [{name: iommu0}]", "x.yaml").trace is None
    trace = parse_config(TRACED + "{}", "x.yaml").trace
    assert trace is not None
    assert (trace.file, trace.records) == (None, 10_000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{max_bytes: 4K}", "trace.max_bytes: 4K is too small for a trace"),
        ("{records: 0}", "trace.records: 0 is not in 1..1000000"),
        ("{endpoints: [accel1]}", "trace.endpoints: there is no 'accel1' (known: iommu0 (00:10.0), accel0 (01:00.0))"),
        ("{types: [MAPS]}", "trace.types: there is no 'MAPS' (known: ATTACH"),
        ("{statuses: ['!GOOD']}", "trace.statuses: there is no '!GOOD' (known: OK"),
        ("{fil: x}", "trace.fil: there is no such key"),
    ],
)
def test_a_wrong_trace_is_refused_with_what_is_known(text: str, words: str) -> None:
    assert f"x.yaml: {words}" in refusal(TRACED + text)
