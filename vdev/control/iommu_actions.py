"""The control socket's commands that change a unit: its bypass byte, and all it holds."""

from __future__ import annotations

from typing import Any

from vdev.control.iommu_units import Units, the_unit
from vdev.control.server import Command
from vdev.errors import ConfigError

_BYPASS = ("units[].bypass", "on or off")


def iommu_actions(units: Units) -> dict[str, Command]:
    """The table; `units` may change later."""
    actions = IommuActions(units)
    return {"set-bypass": Command(actions.set_bypass), "reset-unit": Command(actions.reset_unit)}


class IommuActions:
    """Every method answers one command of the schema; ConfigError, with nothing changed, for what cannot be."""

    def __init__(self, units: Units) -> None:
        self._units = units

    def set_bypass(self, bypass: bool, unit: str | None = None) -> dict[str, Any]:
        """set-bypass: the driver is told of a change by a configuration interrupt."""
        found = the_unit(self._units, unit)
        engine = found.engine
        given = engine.settings
        if not given.bypass_offered:
            problem = f"{given.name} does not offer BYPASS_CONFIG, so endpoints without a domain never bypass"
            key, value = ("vm.isolation", "preferred") if given.isolation == "required" else _BYPASS
            raise ConfigError("bypass", problem, f"set {key} to {value} in the configuration")
        if given.isolation == "off" and not bypass:
            problem = "false contradicts vm.isolation: off, which isolates nothing"
            raise ConfigError("bypass", problem, "set vm.isolation to preferred in the configuration")
        if engine.set_bypass(bypass):
            found.function.config_changed()
        return {}

    def reset_unit(self, unit: str | None = None, needs_reset: bool = False) -> dict[str, Any]:
        """reset-unit: DMA stops first; the rings go on and find no domain."""
        found = the_unit(self._units, unit)
        name, attach = found.engine.settings.name, found.config.attach
        if needs_reset and attach != "vfio-user":
            problem = f"{name} is attached by {attach}, which cannot tell a driver DEVICE_NEEDS_RESET"
            raise ConfigError("needs-reset", problem, "leave it out")
        bypass = found.engine.bypass
        found.device.host_reset()
        if found.engine.bypass != bypass:
            found.function.config_changed()
        if needs_reset:
            found.function.needs_reset("reset-unit")
        return {}
