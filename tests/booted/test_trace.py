"""The decoded trace of a booted guest: the page's example is true, and every request has its answer and its time."""

from __future__ import annotations

import itertools

import pytest

from guest_tests.payload.checks import CHECKS
from guest_tests.trace_example import check, documented, example, normalised
from tests.booted.conftest import DEFAULT_KERNEL, GuestRun

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]


def test_the_example_in_the_docs_is_what_the_demo_does(first_light: GuestRun, request: pytest.FixtureRequest) -> None:
    kernel, attach = request.node.callspec.params["first_light"]
    trace = first_light.run.trace

    assert set(normalised(check(trace))) <= set(normalised(documented("vfio-user")))
    if kernel == DEFAULT_KERNEL:  # others bind and unbind in other steps
        assert normalised(example(trace, attach)) == normalised(documented(attach))


def test_the_check_and_the_drivers_way_out_look_alike_on_both_attachments(
    first_light: GuestRun, request: pytest.FixtureRequest
) -> None:
    kernel, _ = request.node.callspec.params["first_light"]
    if kernel != DEFAULT_KERNEL:
        pytest.skip("the page is of the default kernel")
    lines = normalised(example(first_light.run.trace, "vfio-user"))

    page = normalised(documented("vfio-user"))
    assert lines[lines.index("...") :] == page[page.index("...") :]


def test_every_request_has_its_answer_and_its_duration(first_light: GuestRun) -> None:
    requests = [record for record in first_light.run.trace if record["kind"] == "request"]

    assert {"PROBE", "ATTACH", "MAP", "UNMAP"} <= {request["type"] for request in requests}
    assert all(request["status"] == "OK" and request["duration_us"] > 0 for request in requests)


def test_requests_of_a_domain_name_the_endpoints_in_it(first_light: GuestRun) -> None:
    where: dict[str, int] = {}  # endpoint -> the domain it was attached to last
    named: set[str] = set()
    for record in first_light.run.trace:
        if record["type"] == "ATTACH":
            where[record["endpoint"]] = record["fields"]["domain"]
        elif record["type"] in ("MAP", "UNMAP"):
            domain = record["fields"]["domain"]
            assert record["endpoints"] == [bdf for bdf, attached in where.items() if attached == domain]
            named |= set(record["endpoints"])

    assert named == {endpoint.bdf for endpoint in first_light.config.endpoints}


def test_the_driver_is_seen_to_negotiate(first_light: GuestRun) -> None:
    (unit,) = first_light.config.units
    own = [record for record in first_light.run.trace if record.get("function") == unit.name]
    words = {(r["fields"]["register"], r["fields"]["words"]) for r in own if r["kind"] == "register"}

    if first_light.run.iommu[0]["attach"] == "vhost-user":  # the status is QEMU's; DRIVER_OK is what starts the rings
        assert [r["fields"]["rings"] for r in own if r["kind"] == "rings"] == ["started"]
    else:
        assert ("device_status", "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK") in words
    assert any(register == "driver_features" and "MAP_UNMAP" in said for register, said in words)
    assert any(register == "queue_enable" and "(requests): 256 entries" in said for register, said in words)


def test_the_trace_has_every_check_by_its_title_in_order_and_time_never_goes_back(first_light: GuestRun) -> None:
    trace = first_light.run.trace
    notes = [record["fields"]["text"] for record in trace if record["kind"] == "note"]

    wanted = [check.title for check in CHECKS if check.name in first_light.checks]
    assert [title for title in wanted if f"guest: {title} ..." in notes] == wanted
    assert [record["seq"] for record in trace] == list(range(trace[0]["seq"], trace[0]["seq"] + len(trace)))
    assert all(one["t"] <= two["t"] for one, two in itertools.pairwise(trace))
