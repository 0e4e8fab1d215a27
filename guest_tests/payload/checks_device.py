"""Checks of the function itself: interrupts and reset."""

from __future__ import annotations

import os
import select
import time

from . import accel, checks_open, vfio
from .lab import Finding, Lab, copy, expect

INTERRUPT_TIMEOUT_MS = 2000


def interrupt_arrives(lab: Lab) -> Finding:
    """A completion with the IRQ flag raises MSI-X vector 0, seen on an eventfd; one without it does not."""
    nvectors = lab.device.nvectors()
    expect(nvectors >= 1, "the function has no MSI-X vector")
    events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(min(nvectors, 2))]
    poller = select.poll()
    poller.register(events[0], select.POLLIN)
    lab.randomise_source()
    try:
        lab.device.enable_msix(events)
        lab.engine.start(accel.ENABLE | accel.IRQ_ENABLE)
        with lab.both_mapped():
            lab.run_ok(copy())
            expect(not poller.poll(50), "an interrupt arrived for a descriptor that did not ask for one")
            started = time.monotonic_ns()
            lab.run_ok(copy(flags=accel.FLAG_IRQ))
            expect(bool(poller.poll(INTERRUPT_TIMEOUT_MS)), f"no interrupt within {INTERRUPT_TIMEOUT_MS} ms")
            irq_ms = (time.monotonic_ns() - started) / 1e6
        count = os.eventfd_read(events[0])
        expect(count == 1, f"{count} interrupts arrived for one completion")
    finally:
        lab.device.disable_msix()
        for event in events:
            os.close(event)
        lab.engine.start()
    return Finding(f"vector 0 fired once, {irq_ms:.2f} ms after the doorbell", {"irq_ms": irq_ms, "count": count})


def reset_restores_power_on_values(lab: Lab) -> Finding:
    """A function reset puts every register back, and the engine works again after it."""
    registers = lab.engine.registers
    expect(lab.device.can_reset(), "the kernel knows no way to reset the function")
    lab.randomise_source()
    with lab.both_mapped():
        lab.run_ok(copy())
        used = checks_open.read_registers(registers)
        expect(used != lab.power_on, "the registers look untouched although the engine has worked")
        lab.device.reset()
        lab.device.set_command(on=vfio.COMMAND_MEMORY | vfio.COMMAND_BUS_MASTER)
        after = checks_open.read_registers(registers)
        wrong = {name: value for name, value in after.items() if value != lab.power_on[name]}
        expect(not wrong, f"not back at their power-on values: {wrong}")
        expect(not registers.read32(accel.STATUS) & accel.RUNNING, "the engine still runs after the reset")
        lab.engine.start()
        lab.run_ok(copy())
    return Finding(
        f"{len(after)} registers back at their power-on values; the engine works again", {"registers": after}
    )
