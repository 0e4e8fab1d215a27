"""Configurations made key by key, good values and odd ones, in block, flow and JSON form: each is accepted and good for
all that follows, or refused by the name of a key.

What accepted ones are good for is said where the fuzzer looks for the same: tests/fuzz/targets/config_yaml.py.
"""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets.config_yaml import one_input
from vdev.config import parse_config
from vdev.config.schema import Config
from vdev.errors import ConfigError

NAMES = st.sampled_from(["iommu0", "iommu1", "accel0", "a", "qmp", "A", ""])
SIZES = st.sampled_from(["4K", 4096, "1", 0, -1, "512M", "1G", "1T", "1.5G", "9" * 40, 1 << 64, 1 << 127, None, True])
BDFS = st.sampled_from(["00:10.0", "00:11.0", "00:02.0", "01:00.0", "02:00.0", "02:00.1", "ff:1f.7", "00:20.0", "x"])
NUMBERS = st.sampled_from([0, 1, 4, 512, 4095, 65536, -1, 0xFEE00000, (1 << 39) - 1, (1 << 64) - 1, 1 << 64, 0.5])
ODD = st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.integers() | st.just([]) | st.just({})
RESERVED = st.fixed_dictionaries({"start": NUMBERS, "end": NUMBERS}, optional={"kind": st.sampled_from(["msi", "x"])})
RANGES = st.lists(NUMBERS, min_size=2, max_size=2)


def some(keys: dict[str, st.SearchStrategy[Any]], **always: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A mapping with `always`, and a few of `keys`, one value in a few an odd one."""
    mixed = {name: st.one_of(values, values, values, ODD) for name, values in keys.items()}
    return st.fixed_dictionaries(always, optional=mixed)


UNITS = some(
    {
        "bdf": BDFS, "attach": st.sampled_from(["vfio-user", "vhost-user"]), "mode": st.sampled_from(["compat", "x"]),
        "granule": SIZES, "input_range": RANGES, "domain_range": RANGES, "mmio": st.booleans(), "probe_size": NUMBERS,
        "bypass": st.sampled_from(["on", "off", "not-offered"]), "reserved": st.lists(RESERVED, max_size=3),
        "limits": some({"max_domains": NUMBERS, "max_request_nbytes": NUMBERS}),
    },
    name=NAMES,
)  # fmt: skip
ENDPOINTS = some(
    {
        "model": st.sampled_from(["accelerator", "rng"]), "unit": NAMES, "bdf": BDFS,
        "reserved": st.lists(RESERVED, max_size=2),
        "options": st.dictionaries(st.sampled_from(["devmem", "x"]), SIZES, max_size=2),
    },
    name=NAMES,
)  # fmt: skip
VMS = some(
    {
        "name": NAMES, "memory": SIZES, "cpus": NUMBERS, "boot_timeout": st.floats(), "append": st.text(max_size=9),
        "kernel": st.sampled_from(["cloud", "none", "./x"]), "disk": st.sampled_from(["", "x"]),
        "extra_args": st.lists(st.sampled_from(["-m", "-device", "intel-iommu", "x,y"]), max_size=3),
    }
)  # fmt: skip
CONFIGS = some(
    {
        "vm": VMS, "endpoints": st.lists(ENDPOINTS, max_size=3), "slots": st.lists(some({}, bdf=BDFS), max_size=2),
        "sockets": some({"owner": NUMBERS | NAMES, "group": NAMES, "mode": st.sampled_from(["0750", "0700", 750])}),
        "trace": some({"max_bytes": SIZES, "records": NUMBERS, "types": st.lists(st.sampled_from(["MAP", "?"]))}),
    },
    units=st.lists(UNITS, max_size=2),
)  # fmt: skip
FORMS = (
    lambda data: yaml.safe_dump(data, allow_unicode=True),
    lambda data: yaml.safe_dump(data, default_flow_style=True, width=20),
    lambda data: json.dumps(data),
)
GOOD: dict[str, Any] = {"units": [{"name": "iommu0"}], "endpoints": [{"name": "accel0"}], "vm": {"cpus": 1}}


@given(CONFIGS, st.sampled_from(FORMS))
@settings(deadline=None, max_examples=300)
def test_a_configuration_is_good_for_all_that_follows_or_refused(config: Any, form: Any) -> None:
    one_input(b"\0" + form(config).encode(errors="surrogatepass"))


@given(st.lists(some({"attach": st.lists(st.sampled_from(["vfio-user", "x"])), "name": NAMES}, config=CONFIGS)))
@settings(deadline=None, max_examples=100)
def test_a_suite_is_good_for_all_that_follows_or_refused(machines: Any) -> None:
    one_input(b"\1" + yaml.safe_dump({"machines": machines}, allow_unicode=True).encode(errors="surrogatepass"))


@given(
    st.sampled_from(["vm", "units", "endpoints"]),
    st.sampled_from(["name", "bdf", "memory", "mode", "granule", "mmio", "probe_size", "options", "nonsense"]),
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.sampled_from([[1], {"a": [1]}, "\u20ac", ""]),
)
@settings(deadline=None, max_examples=300)
def test_a_refusal_names_the_key_and_says_what_is_wrong_in_one_line(section: str, key: str, value: Any) -> None:
    config = {name: dict(part) if name == "vm" else [dict(part[0])] for name, part in GOOD.items()}
    place = config[section] if isinstance(config[section], dict) else config[section][0]
    place[key] = value

    try:
        accepted = parse_config(json.dumps(config), "x.yaml")
    except ConfigError as error:
        assert error.key.startswith(f"x.yaml: {section}")
        assert key in error.key
        assert error.problem
        assert "\n" not in str(error)
    else:
        assert isinstance(accepted, Config)
        assert key != "nonsense"
