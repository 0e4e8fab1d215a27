"""What each capability lets a driver see and set."""

from __future__ import annotations

from tests.support.pci import Recorder, extended, get, put, standard
from vdev.wire import pci


def test_device_control_is_writable_and_errors_are_cleared_by_ones() -> None:
    function = Recorder()
    pcie = standard(function, pci.CapId.PCIE)
    function.config.set(pcie + pci.DEVSTA, 2, 0x0F)

    put(function, pcie + pci.DEVCTL, 2, 0x2937)
    put(function, pcie + pci.DEVSTA, 2, 0x05)

    assert get(function, pcie + pci.DEVCTL, 2) == 0x2937
    assert get(function, pcie + pci.DEVSTA, 2) == 0x0A


def test_aer_status_is_write_one_to_clear_and_the_masks_are_writable() -> None:
    function = Recorder()
    aer = extended(function, pci.ExtCapId.AER)
    function.config.set(aer + pci.AER_UNCORRECTABLE_STATUS, 4, 0x00108000)
    function.config.set(aer + pci.AER_CORRECTABLE_STATUS, 4, 0x2001)

    put(function, aer + pci.AER_UNCORRECTABLE_STATUS, 4, 0x00100000)
    put(function, aer + pci.AER_CORRECTABLE_STATUS, 4, 0x0001)
    put(function, aer + pci.AER_UNCORRECTABLE_SEVERITY, 4, 0xFFFFFFFF)

    assert get(function, aer + pci.AER_UNCORRECTABLE_STATUS, 4) == 0x00008000
    assert get(function, aer + pci.AER_CORRECTABLE_STATUS, 4) == 0x2000
    assert get(function, aer + pci.AER_UNCORRECTABLE_SEVERITY, 4) == pci.AER_UNCORRECTABLE_BITS
    assert get(function, aer + pci.AER_CORRECTABLE_MASK, 4) == pci.AER_CORRECTABLE_MASK_POWER_ON


def test_ats_control_takes_enable_and_page_size_only() -> None:
    function = Recorder()
    ats = extended(function, pci.ExtCapId.ATS)

    put(function, ats + pci.ATS_CONTROL, 2, 0xFFFF)

    assert get(function, ats + pci.ATS_CONTROL, 2) == 0x801F
    assert function.ats_enabled


def test_pri_reads_stopped_until_it_is_enabled() -> None:
    function = Recorder()
    pri = extended(function, pci.ExtCapId.PRI)
    before = get(function, pri + pci.PRI_STATUS, 2)

    put(function, pri + pci.PRI_ALLOCATION, 4, 32)
    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_ENABLE)
    while_on = get(function, pri + pci.PRI_STATUS, 2), function.pri_enabled
    put(function, pri + pci.PRI_CONTROL, 2, 0)

    assert before == pci.PRI_STOPPED | pci.PRI_RESPONSE_PASID_REQUIRED
    assert while_on == (pci.PRI_RESPONSE_PASID_REQUIRED, True)
    assert get(function, pri + pci.PRI_STATUS, 2) & pci.PRI_STOPPED
    assert get(function, pri + pci.PRI_CAPACITY, 4) == 64
    assert get(function, pri + pci.PRI_ALLOCATION, 4) == 32


def test_pri_reset_reads_zero_and_acts_only_while_disabled() -> None:
    function = Recorder()
    pri = extended(function, pci.ExtCapId.PRI)
    failed = pci.PRI_RESPONSE_FAILURE | pci.PRI_STOPPED
    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_ENABLE)
    function.config.set(pri + pci.PRI_STATUS, 2, failed)

    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_ENABLE | pci.PRI_RESET)
    while_on = get(function, pri + pci.PRI_STATUS, 2)
    put(function, pri + pci.PRI_CONTROL, 2, 0)
    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_RESET)

    assert while_on & pci.PRI_RESPONSE_FAILURE
    assert get(function, pri + pci.PRI_STATUS, 2) == pci.PRI_STOPPED
    assert get(function, pri + pci.PRI_CONTROL, 2) == 0


def test_pasid_control_is_limited_by_its_capability() -> None:
    function = Recorder()
    pasid = extended(function, pci.ExtCapId.PASID)

    put(function, pasid + pci.PASID_CONTROL, 2, 0xFFFF)

    assert get(function, pasid + pci.PASID_CAPABILITY, 2) == 16 << 8 | pci.PASID_EXECUTE
    assert get(function, pasid + pci.PASID_CONTROL, 2) == pci.PASID_ENABLE | pci.PASID_EXECUTE
    assert function.pasid_control == pci.PASID_ENABLE | pci.PASID_EXECUTE
    assert (function.pasid_bits, function.pasid_rights) == (16, pci.PASID_EXECUTE)


def test_acs_control_takes_only_what_is_offered() -> None:
    function = Recorder()
    acs = extended(function, pci.ExtCapId.ACS)

    put(function, acs + pci.ACS_CONTROL, 2, 0xFFFF)

    assert get(function, acs + pci.ACS_CONTROL, 2) == get(function, acs + pci.ACS_CAPABILITY, 2)
