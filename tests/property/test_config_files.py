"""Configurations made key by key, good values and odd ones, in block, flow and JSON form: each is accepted and good for
all that follows, or refused by the name of a key.

What accepted ones are good for is said where the fuzzer looks for the same: tests/fuzz/targets/config_yaml.py.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import msgspec
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets.config_yaml import one_input
from vdev.config import parse_config
from vdev.config.schema import Config
from vdev.errors import ConfigError

SIZES = st.sampled_from(["4K", 4096, "1", "512M", "1G", "64K", 0x1000])
RESERVED = st.sampled_from([{"start": 0xFEE00000, "end": 0xFEEFFFFF, "kind": "msi"}, {"start": 0x1000, "end": 0x1FFF}])
ODD = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.integers() | st.integers(-(1 << 66), 1 << 66)
    | st.sampled_from([[], {}, [0, 1], "9" * 40, 1 << 127, 1 << 64, -1, "-1", 0.5, "a", "qmp", "ff:1f.7", "00:20.0"])
)  # fmt: skip


def some(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with a few of these keys."""
    return st.fixed_dictionaries({}, optional=optional)


UNITS = some(
    attach=st.sampled_from(["vfio-user", "vhost-user"]), mode=st.sampled_from(["compat", "strict"]),
    granule=st.sampled_from(["4K", 1, "64K"]), input_range=st.sampled_from([[0, 0xFFFFFFFF], [0x10000, 0xFFFFF]]),
    domain_range=st.sampled_from([[0, 0], [1, 0xFFFF]]), mmio=st.booleans(), probe_size=st.sampled_from([0, 64, 512]),
    bypass=st.sampled_from(["on", "off", "not-offered"]), reserved=st.lists(RESERVED, max_size=1),
    limits=some(max_domains=st.integers(1, 9), max_request_nbytes=st.sampled_from([588, 1 << 16])),
)  # fmt: skip
ENDPOINTS = some(
    model=st.sampled_from(["accelerator", "rng"]), reserved=st.lists(RESERVED, max_size=1),
    options=st.sampled_from([{}, {}, {"devmem": "1M"}]),
)  # fmt: skip
VMS = some(
    name=st.sampled_from(["vm", "a-1"]), memory=st.sampled_from(["512M", "1G", 1 << 28]), cpus=st.integers(1, 64),
    boot_timeout=st.floats(0.1, 1e30), append=st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=9),
    kernel=st.sampled_from(["cloud", "./x"]), accel=st.sampled_from(["tcg", "auto"]),
    extra_args=st.lists(st.sampled_from(["-device", "x,y", "\u20ac", " "]), max_size=3),
)  # fmt: skip
SOCKETS = st.sampled_from([{}, {"owner": 1000}, {"group": "kvm"}, {"group": 5, "mode": "0750"}])
RULES = some(
    id=st.sampled_from(["a", "b-2"]), at=st.sampled_from(["request", "dma"]), do=st.sampled_from(["drop", "delay"]),
    match=some(iova=st.sampled_from(["0x1000-0x1fff", 0x1000]), type=st.just("MAP")), times=st.integers(1, 9),
    when=some(nth=st.integers(1, 9) | st.lists(st.integers(1, 9), max_size=2), window=st.just([0.5, 2])),
)  # fmt: skip
FAULTS = some(seed=st.integers(0, (1 << 64) - 1), rules=st.lists(RULES, max_size=2))
TRACES = some(max_bytes=st.sampled_from(["1M", 1 << 16]), records=st.integers(1, 99), types=st.just(["MAP"]))


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A good configuration in which up to two values were replaced by odd ones."""
    units = [{"name": f"iommu{n}", "bdf": f"00:1{n}.0", **draw(UNITS)} for n in range(draw(st.integers(1, 2)))]
    names = [unit["name"] for unit in units]
    endpoints = [
        {"name": f"e{n}", "bdf": f"{n + 1:02x}:00.0", "unit": draw(st.sampled_from(names)), **draw(ENDPOINTS)}
        for n in range(draw(st.integers(0, 3)))
    ]
    slots = [{"bdf": f"{len(endpoints) + 1:02x}:00.0"}] * draw(st.integers(0, 1))
    config = {"units": units, "endpoints": endpoints, "slots": slots, "vm": draw(VMS)}
    config = deepcopy(config | draw(some(sockets=SOCKETS, trace=TRACES, faults=FAULTS)))  # samples are shared
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        spoil(draw, config)
    return config


def spoil(draw: st.DrawFn, place: Any) -> None:
    """Replace a value somewhere in `place`, or add a key."""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from([*keys, "x"] if isinstance(place, dict) else keys or [0]))
        inside = place[key] if key in keys else None
        if not isinstance(inside, dict | list) or not inside or draw(st.integers(0, 5)) == 0:
            break
        place = inside
    if isinstance(place, dict) or keys:
        place[key] = draw(ODD)


FORMS = (
    lambda data: yaml.safe_dump(data, allow_unicode=True),
    lambda data: yaml.safe_dump(data, default_flow_style=True, width=20),
    lambda data: json.dumps(data),
)
SUITE_KEYS = {
    "attach": st.sampled_from([[], ["vfio-user"], ["vfio-user", "vhost-user"], ["x"]]), "name": st.text(max_size=3),
    "kernels": st.sampled_from([["cloud", "generic"], ["./a/x"], [""]]), "append": st.text(max_size=3),
    "tier": st.sampled_from(["normal", "soak"]),
}  # fmt: skip
GOOD: dict[str, Any] = {"units": [{"name": "iommu0"}], "endpoints": [{"name": "accel0"}], "vm": {"cpus": 1}}


def check_words(error: ConfigError, section: str, key: str) -> None:
    assert error.key.startswith(f"x.yaml: {section}")
    assert key in error.key
    assert error.problem
    assert "\n" not in str(error)


@given(configs(), st.sampled_from(FORMS))
@settings(deadline=None, max_examples=150)
def test_a_configuration_is_good_for_all_that_follows_or_refused(config: Any, form: Any) -> None:
    one_input(b"\0" + form(config).encode(errors="surrogatepass"))


@given(st.lists(st.fixed_dictionaries({"config": configs()}, optional=SUITE_KEYS), min_size=1, max_size=2))
@settings(deadline=None, max_examples=60)
def test_a_suite_is_good_for_all_that_follows_or_refused(machines: Any) -> None:
    one_input(b"\1" + yaml.safe_dump({"machines": machines}, allow_unicode=True).encode(errors="surrogatepass"))


@given(configs())
@settings(deadline=None, max_examples=60)
def test_the_copy_the_backend_reads_says_the_same(config: Any) -> None:
    try:
        accepted = parse_config(json.dumps(config), "x.yaml")
    except ConfigError:
        return
    copy = msgspec.json.encode(accepted).decode()
    assert parse_config(copy, "config.json") == parse_config(yaml.safe_dump(json.loads(copy)), "x.yaml") == accepted


@given(
    st.sampled_from(["vm", "units", "endpoints"]),
    st.sampled_from(["name", "bdf", "memory", "mode", "granule", "mmio", "probe_size", "options", "nonsense"]),
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.sampled_from([[1], {"a": [1]}, "\u20ac", ""]),
)
@settings(deadline=None, max_examples=200)
def test_a_refusal_names_the_key_and_says_what_is_wrong_in_one_line(section: str, key: str, value: Any) -> None:
    config: dict[str, Any] = {name: dict(part) if name == "vm" else [dict(part[0])] for name, part in GOOD.items()}
    place = config[section] if isinstance(config[section], dict) else config[section][0]
    place[key] = value

    try:
        accepted = parse_config(json.dumps(config), "x.yaml")
    except ConfigError as error:
        check_words(error, section, key)
    else:
        assert isinstance(accepted, Config)
        assert key != "nonsense"
