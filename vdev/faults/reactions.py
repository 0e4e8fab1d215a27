"""What is done about each action: by the stock Linux driver, by our guest library. docs/faults.md shows this table.

Observed in booted guests, never worked out: each row names the test that shows it. The key is POINT/ACTION, and for an
action that may stand at every point its name alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reaction:
    """In words, for people: what virtio_iommu and the drivers above it do, with what the kernel's log says and where it
    hangs by design; what guest_tests.payload.direct does. `test` is a file and a name: guest_tests/....py::test_..."""

    linux: str
    library: str
    test: str


REACTIONS: Mapping[str, Reaction] = {
    "request/status": Reaction(
        "**a kernel bug**: a refused MAP or UNMAP is success to VFIO and to the DMA API, as nobody looks at "
        "the answer of either; after a refused MAP accesses fault, after a refused UNMAP the device still "
        "reaches the page that was given back. A refused ATTACH is the matching errno of VFIO; a refused "
        "PROBE leaves the endpoint without a group (`probe with driver vfio-pci failed with error -22`); a "
        "refused DETACH is a WARNING in `viommu_release_device`",
        "a method such as map raises RequestRefused with that status, send returns it",
        "guest_tests/suites/faults-stock/test_requests.py"
        "::test_after_a_refused_unmap_the_device_reaches_what_vfio_has_given_back",
    ),
    "request/hold": Reaction(
        "hangs by design for as long: a processor spins in `__viommu_sync_req` with interrupts off; then all "
        "goes on, in 6.12 after 45 s with `rcu: INFO: rcu_preempt self-detected stall`",
        "NoAnswer after two seconds; an answer that comes later is counted (requests.ring.nlate) and nobody's",
        "guest_tests/suites/faults-stock/test_requests.py"
        "::test_while_an_answer_is_held_a_processor_spins_with_interrupts_off",
    ),
    "request/drop": Reaction(
        "hangs by design, for good: as `hold`; after `clear` all goes on",
        "as hold, but that no answer comes before clear; a ring full of such requests raises RingFull",
        "guest_tests/suites/faults-stock/test_requests.py"
        "::test_a_dropped_answer_hangs_linux_until_it_is_given_after_all",
    ),
    "request/twice": Reaction(
        "**a kernel bug**: the second answer is taken for that of the next request, which gets the same "
        "place in the ring: that succeeds and is freed, with its descriptors, before the unit has read it. "
        "The unit finds no request there and breaks the ring, and Linux spins at the one after that until "
        "the machine is reset (6.12), or finds the one after that, so that one mapping is missing (7.3)",
        "RingViolation at the second used element (an id which is not out), and from then on until start",
        "tests/booted/test_faults_stock.py"
        "::test_linux_takes_a_second_answer_for_that_of_its_next_request_which_is_lost",
    ),
    "request/used-length": Reaction(
        "**a kernel bug**: success, whatever the length, of an ATTACH, too; 0 is meant to be EIO. A PROBE "
        "has no properties then: reserved regions are forgotten, and MSI goes by 0x08000000",
        "more than there is room for: RingViolation; less than a tail: RequestRefused with status None; "
        "other lengths: the status is read from where the length says the tail ends",
        "guest_tests/suites/faults-stock/test_requests.py"
        "::test_an_attach_of_used_length_0_is_success_though_the_driver_means_to_fail_it",
    ),
    "request/reorder": Reaction(
        "answers are taken as they come; a request that is alone in the ring, as every MAP of VFIO's, hangs "
        "Linux for the second after which it is answered anyhow",
        "submit takes answers in any order; a request made alone is answered after a second",
        "guest_tests/suites/faults-stock/test_requests.py::test_answers_in_another_order_are_taken_as_they_come",
    ),
    "request/probe-truncate": Reaction(
        "believed without a word: regions that are missing are free for use, MSI goes by 0x08000000, and a "
        "region that was cut has zeros for its addresses",
        "probe returns the properties there are; one that is cut has zeros for its rest",
        "guest_tests/suites/faults-stock/test_requests.py::test_properties_that_end_early_are_believed",
    ),
    "request/probe-corrupt": Reaction(
        "a type or subtype it does not know is logged (`unknown viommu prop 0x7f`, `unknown resv mem subtype "
        "0x9`) and passed over, or reserved; a length it cannot use fails the driver's probe (`failed to "
        "parse viommu prop 0x1`). **A kernel bug**: a region that starts behind its end is believed",
        "probe returns what the bytes say: an unknown property is one of UnknownProperty",
        "guest_tests/suites/faults-stock/test_requests.py::test_properties_with_wrong_bytes",
    ),
    "invalidation/stale": Reaction(
        "does not notice: the device writes a page that VFIO has given back, and goes on doing so when "
        "another is mapped there",
        "nothing is raised: DMA goes where the page was",
        "guest_tests/suites/faults-stock/test_invalidations.py"
        "::test_a_page_that_vfio_unmapped_is_still_written_and_stands_before_the_next_one",
    ),
    "invalidation/early": Reaction(
        "does not notice: bytes land in a page that VFIO has given back",
        "nothing is raised: bytes of an access under way change the page after unmap has returned",
        "guest_tests/suites/faults-stock/test_invalidations.py"
        "::test_an_early_answer_lets_the_access_land_in_a_page_that_was_given_back",
    ),
    "translation/unmapped": Reaction(
        "`page fault from EP 256 at 0x20000000 [W]`, as of a real one; VFIO goes on. `virtio_rng` gives "
        "nothing any more, readers of /dev/hwrng wait until they are killed, until it is bound again: "
        "nothing in Linux acts on DEVICE_NEEDS_RESET",
        "the operation raises TranslationFault with address and access, the fault record is like a real one; "
        "a refused access of the ring stops the engine (EngineStopped, RING_FETCH or COMPLETION_WRITE) until "
        "it is started anew",
        "guest_tests/suites/faults-stock/test_accesses.py::test_a_refused_translation_is_told_as_any_and_vfio_goes_on",
    ),
    "translation/no-permission": Reaction(
        "as `unmapped`, in the same words",
        "as unmapped; the host counts it as no-read or no-write",
        "guest_tests/suites/faults-stock/test_accesses.py::test_a_refused_translation_is_told_as_any_and_vfio_goes_on",
    ),
    "translation/wrong-domain": Reaction(
        "does not notice: the bytes are in a page of the other domain's; where there is no such domain "
        "`domain fault from EP 256 at ...`",
        "nothing is raised: the operation succeeds and its bytes are elsewhere; where there is no such "
        "domain TranslationFault, with a record of reason DOMAIN",
        "guest_tests/suites/faults-stock/test_accesses.py"
        "::test_an_access_in_the_wrong_domain_lands_in_anothers_page_and_nobody_is_told",
    ),
    "translation/aperture": Reaction(
        "`page fault`, at the first byte outside",
        "TranslationFault at the first byte outside; what stays inside is as ever",
        "guest_tests/suites/faults-stock/test_accesses.py::test_a_refused_translation_is_told_as_any_and_vfio_goes_on",
    ),
    "dma/unsupported-request": Reaction(
        "nothing is logged: VFIO's user learns of it from the device. `virtio_rng` is silent until it is bound again",
        "UnsupportedRequest, with the operand's address and no fault record; of the ring EngineStopped",
        "guest_tests/suites/faults-stock/test_accesses.py"
        "::test_the_rng_whose_access_failed_gives_nothing_until_its_driver_is_bound_again",
    ),
    "dma/completer-abort": Reaction(
        "as `unsupported-request`",
        "CompleterAbort, with the operand's address and no fault record; of the ring EngineStopped",
        "guest_tests/suites/faults-stock/test_accesses.py"
        "::test_an_access_that_ends_with_an_error_is_the_devices_to_tell",
    ),
    "dma/delay": Reaction(
        "a reader of /dev/hwrng waits; an UNMAP of what is under way hangs a processor, as a held answer "
        "does, until the bytes have landed",
        "the operation's completion comes later, and so does the answer of an UNMAP of its operand; "
        "AcceleratorTimeout after 5 s",
        "guest_tests/suites/faults-stock/test_invalidations.py::test_an_unmap_waits_for_the_access_under_way",
    ),
    "dma/partial": Reaction(
        "`page fault` where it broke off, and the bytes before that are there; `virtio_rng` is silent until "
        "it is bound again",
        "TranslationFault at the first byte that did not move, `nbytes_done` says how many did, and a fault record",
        "guest_tests/suites/faults-stock/test_accesses.py"
        "::test_a_partial_access_leaves_its_beginning_and_a_fault_where_it_broke_off",
    ),
    "dma/corrupt": Reaction(
        "does not notice: /dev/hwrng gives 0xa5 for random bytes",
        "nothing is raised: the bytes are wrong; a corrupted descriptor is executed as it reads, mostly BadDescriptor",
        "guest_tests/suites/faults-stock/test_accesses.py::test_bytes_that_are_not_random_are_drawn_as_random_ones",
    ),
    "event/drop": Reaction(
        "says nothing of that fault, and everything of the next",
        "wait_fault raises NoAnswer, faults returns nothing; the operation raises TranslationFault all the same",
        "guest_tests/suites/faults-stock/test_events.py::test_of_a_dropped_record_nothing_is_said_and_the_next_is_told",
    ),
    "event/duplicate": Reaction(
        "logs the fault twice",
        "the same fault twice",
        "guest_tests/suites/faults-stock/test_events.py::test_a_record_that_comes_twice_is_told_twice",
    ),
    "event/delay": Reaction(
        "logs the fault later, behind those that came after it",
        "the fault comes later, behind younger ones",
        "guest_tests/suites/faults-stock/test_events.py::test_a_record_that_comes_late_is_told_late",
    ),
    "event/unknown-reason": Reaction(
        "logs `unknown fault from EP 256 at ...`, without the number of the reason",
        "a Fault whose reason is a plain number",
        "guest_tests/suites/faults-stock/test_events.py::test_a_reason_that_no_specification_has_is_unknown",
    ),
    "interrupt/lose": Reaction(
        "of the unit: no fault is logged any more, as with EVENT_IDX the unit owes no interrupt before the "
        "driver has looked; one `spurious` and all are logged. Of `virtio_rng`: readers wait until they are "
        "killed, until another interrupt comes",
        "`Vector.wait` is False; who polls notices nothing",
        "guest_tests/suites/faults-stock/test_interrupts.py"
        "::test_after_a_lost_interrupt_no_fault_is_told_until_another_interrupt_comes",
    ),
    "interrupt/delay": Reaction(
        "faults are logged later; a reader of /dev/hwrng waits",
        "`Vector.wait` is True when it comes",
        "guest_tests/suites/faults-stock/test_interrupts.py::test_a_late_interrupt_tells_of_faults_late",
    ),
    "pasid/exhausted": Reaction(
        "knows of no PASIDs. An endpoint that is to have a kernel PASID has none: VFIO maps as ever and each "
        "access is a `domain fault`, until one is granted",
        "RequestRefused with NOMEM; the next allocation is granted",
        "guest_tests/suites/faults-stock/test_pasids.py"
        "::test_without_a_kernel_pasid_vfio_maps_as_ever_and_every_access_faults",
    ),
    "pasid/quota": Reaction(
        "as `exhausted`",
        "as `exhausted`; the host tells of it once (PASID_QUOTA_EXCEEDED)",
        "guest_tests/suites/faults-stock/test_pasids.py"
        "::test_without_a_kernel_pasid_vfio_maps_as_ever_and_every_access_faults",
    ),
    "pasid/unreachable": Reaction(
        "as `exhausted`",
        "RequestRefused with DEVERR; the next allocation is granted",
        "guest_tests/suites/faults-stock/test_pasids.py"
        "::test_without_a_kernel_pasid_vfio_maps_as_ever_and_every_access_faults",
    ),
    "register/stuck": Reaction(
        "VFIO's user reads it. A virtio status that never reads 0 hangs whoever resets the device, in "
        "`vp_reset` and without a limit, until it does; one that always reads 0 is `device refuses features: "
        "0`",
        "it believes what it reads: an engine whose STATUS reads 0 is EngineStopped, a unit whose device "
        "status reads NEEDS_RESET is DeviceBroken",
        "guest_tests/suites/faults-stock/test_functions.py"
        "::test_a_status_that_is_never_0_hangs_whoever_resets_the_device",
    ),
    "remove": Reaction(
        "**a kernel bug**: whoever unbinds a virtio function hangs in `vp_reset`, which waits for a status "
        "of 0 and reads all-ones, until `clear`; readers of /dev/hwrng wait until they are killed. VFIO's "
        "user reads all-ones; closing the function waits in 6.12, for more than a minute unless it comes "
        "back (`not ready 65535ms after FLR; giving up`), and not at all in 7.3 (`unable to FLR`)",
        "AcceleratorTimeout, with registers of all ones, or NoAnswer of a unit; after `clear` `awake()` and "
        "a new start",
        "guest_tests/suites/faults-stock/test_functions.py"
        "::test_a_removed_rng_gives_nothing_and_whoever_unbinds_it_hangs_until_it_is_back",
    ),
    "needs-reset": Reaction(
        "logs `config changed` and goes on; its next request hangs it for good, as a dropped one. Binding "
        "the driver again cures it, where no endpoint is in a group and nothing was asked meanwhile; else a "
        "reset of the machine",
        "DeviceBroken at the next request, until `start()`",
        "tests/booted/test_faults_stock.py"
        "::test_linux_goes_on_with_a_unit_that_needs_a_reset_and_hangs_at_its_next_request",
    ),
    "config-change": Reaction(
        "logs `config changed` and goes on",
        "the configuration vector fires; `read_config` reads what it read before",
        "guest_tests/suites/faults-stock/test_functions.py"
        "::test_the_driver_says_that_the_configuration_changed_and_goes_on",
    ),
    "flr": Reaction(
        "does not notice: VFIO's user finds a function that is off, its command register 0; `virtio_rng` is "
        "silent until it is bound again",
        "EngineStopped or AcceleratorTimeout: the registers are at power-on values; `awake()` and a new start",
        "guest_tests/suites/faults-stock/test_functions.py"
        "::test_after_a_reset_in_mid_dma_vfio_shows_a_function_that_is_off",
    ),
    "aer": Reaction(
        "logged as an error of the root port's (`pcieport 0000:00:02.0: AER: ... error message received`). "
        "From an uncorrectable one what is below recovers, if it has a driver that can, as vfio-pci (`device "
        "recovery successful`); an endpoint without one cannot (`can't recover (no error_detected "
        "callback)`). All goes on as before",
        "nothing: the status bits are there for whoever reads them",
        "guest_tests/suites/faults-stock/test_root_port.py"
        "::test_the_kernel_reports_an_error_of_the_port_in_front_of_the_endpoint",
    ),
    "spurious": Reaction(
        "does not notice, but for vector 0 of a virtio function, its configuration: `config changed`",
        "`Vector.has_fired` with nothing to be found; requests and operations go on",
        "guest_tests/suites/faults-stock/test_interrupts.py::test_interrupts_without_a_reason_go_unnoticed",
    ),
    "flood": Reaction(
        "logs ten of them in five seconds, and of the others how many they were (`viommu_fault_handler: 1019 "
        "callbacks suppressed`) with the next fault; all goes on",
        "the faults come as fast as buffers are posted again; real ones of that time come behind them, or are lost",
        "guest_tests/suites/faults-stock/test_events.py"
        "::test_of_a_flood_a_few_records_are_told_and_afterwards_how_many_were_not",
    ),
    "reclaim": Reaction(
        "knows of no PASIDs. A kernel PASID that is taken is gone for good: VFIO maps as ever and each "
        "access is a `domain fault`",
        "TranslationFault at the next access with it, with a record of reason PASID; freeing it frees none",
        "guest_tests/suites/faults-stock/test_pasids.py"
        "::test_a_kernel_pasid_that_is_reclaimed_is_gone_for_good_and_every_access_faults",
    ),
    "quota-order": Reaction(
        "does not notice",
        "`pasids.config().quota` reads the new one; what is beyond it is RequestRefused with NOMEM",
        "guest_tests/suites/faults-stock/test_pasids.py::test_another_quota_goes_unnoticed",
    ),
    "stall": Reaction(
        "waits: a request as if it were held, a register access with its processor stopped; then all goes "
        "on, with a word of the clocksource at most",
        "waits as for any answer, and gets it when the stall is over",
        "guest_tests/suites/faults-stock/test_functions.py"
        "::test_while_the_backend_stands_still_the_guest_waits_and_then_all_is_well",
    ),
    "die": Reaction(
        "ends with its QEMU: the launcher stops that at once and says `the backend was ended by SIGKILL`",
        "ends with its QEMU",
        "tests/booted/test_faults_stock.py::test_when_the_backend_dies_the_launcher_ends_qemu_and_says_why",
    ),
}
