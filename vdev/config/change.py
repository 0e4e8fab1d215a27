"""A configuration whose endpoints come and go: what it is after one came, or was taken away. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from vdev.config.checks import check_config
from vdev.config.load import EXAMPLES
from vdev.config.schema import Config, EndpointConfig, SlotConfig
from vdev.config.text import convert, parse_bdf
from vdev.errors import ConfigError


def with_endpoint(config: Config, given: Mapping[str, object]) -> tuple[Config, EndpointConfig]:
    """`config` with another endpoint in one of its slots, and that endpoint.

    `given` has keys of an endpoint but `unit`, which is the slot's; without `bdf` it takes the first free slot. All
    rules of a configuration hold for it. ConfigError.
    """
    slot = _free_slot(config, given.get("bdf"))
    wanted = {**given, "bdf": slot.bdf, "unit": slot.unit}
    endpoint = convert({"units": [{"name": slot.unit}], "endpoints": [wanted]}, Config, EXAMPLES).endpoints[0]
    rest = tuple(other for other in config.slots if other is not slot)
    changed = msgspec.structs.replace(config, endpoints=(*config.endpoints, endpoint), slots=rest)
    check_config(msgspec.structs.replace(changed, trace=None))  # the trace may name an endpoint that was there once
    return changed, endpoint


def without_endpoint(config: Config, name: str) -> Config:
    """`config` with a free slot in the place of endpoint `name`. ConfigError if it is not there, or in no slot."""
    endpoint = endpoint_named(config, name)
    if parse_bdf(endpoint.bdf) >> 8 == 0:
        raise ConfigError(name, f"{endpoint.bdf} is on bus 00, which has no hot-plug", "only endpoints in slots can go")
    rest = tuple(other for other in config.endpoints if other is not endpoint)
    return msgspec.structs.replace(
        config, endpoints=rest, slots=(*config.slots, SlotConfig(bdf=endpoint.bdf, unit=endpoint.unit))
    )


def endpoint_named(config: Config, name: str) -> EndpointConfig:
    """The endpoint called `name`. ConfigError, with the names there are."""
    for endpoint in config.endpoints:
        if endpoint.name == name:
            return endpoint
    known = ", ".join(endpoint.name for endpoint in config.endpoints)
    raise ConfigError("name", f"there is no endpoint {name!r}", f"there are: {known or 'none'}")


def slots_of(config: Config) -> list[tuple[SlotConfig, EndpointConfig | None]]:
    """Every place behind a root port by rising address, with the endpoint that is there."""
    taken: list[tuple[SlotConfig, EndpointConfig | None]] = [
        (SlotConfig(bdf=endpoint.bdf, unit=endpoint.unit), endpoint)
        for endpoint in config.endpoints
        if parse_bdf(endpoint.bdf) >> 8
    ]
    return sorted([*taken, *((slot, None) for slot in config.slots)], key=lambda pair: parse_bdf(pair[0].bdf))


def _free_slot(config: Config, bdf: object) -> SlotConfig:
    free = sorted(config.slots, key=lambda slot: parse_bdf(slot.bdf))
    if bdf is None:
        if not free:
            taken = len(slots_of(config))
            problem = f"all {taken} slots are taken" if taken else "there are none"
            raise ConfigError("slots", problem, "unplug an endpoint, or give the configuration more slots")
        return free[0]
    wanted = parse_bdf(str(bdf))
    for slot in free:
        if parse_bdf(slot.bdf) == wanted:
            return slot
    for endpoint in config.endpoints:
        if parse_bdf(endpoint.bdf) == wanted:
            raise ConfigError("bdf", f"{bdf} is taken by {endpoint.name}", _shown(free))
    raise ConfigError("bdf", f"{bdf} is no slot", _shown(free))


def _shown(free: Sequence[SlotConfig]) -> str:
    return f"free slots: {', '.join(slot.bdf for slot in free) or 'none'}"
