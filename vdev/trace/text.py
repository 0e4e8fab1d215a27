"""Trace records as lines for people, made of the record alone: live, from a file, and in a failed test they look alike.

    seconds  who  type  what  status  duration  why

`who` is the unit that answered or the function it happened at. Ranges are inclusive, as in the specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Record = Mapping[str, Any]

WHO_WIDTH = 8
TYPE_WIDTH = 7
WHAT_WIDTH = 60
STATUS_WIDTH = 9
DIM, RED, YELLOW, MAGENTA, CYAN = "2", "31", "33", "35", "36"
_COLOURS = {
    "fault": RED, "error": RED, "injected": MAGENTA, "lost": YELLOW, "note": CYAN, "trace": CYAN, "register": DIM,
    "irq": DIM,
}  # fmt: skip


def header_lines(header: Record) -> list[str]:
    """What the trace is of."""
    units = [f"{unit['name']} is {unit['bdf']}" for unit in header["units"]]
    endpoints = [f"{end['name']} is {end['bdf']} behind {end['unit']}" for end in header["endpoints"]]
    return [
        _printable(f"# VM {header['vm']}, vdev {header['vdev']}; 0 is {header['started']}"),
        _printable(f"# {', '.join([*units, *endpoints])}"),
    ]


def line(record: Record, *, colour: bool = False) -> str:
    """One record as one line, without a newline."""
    what = _WHAT.get(record["kind"], _any)(record)
    who = (
        record.get("unit", "")
        if record["kind"] in ("request", "held", "fault", "pasid", "injected")
        else record.get("function", "")
    )
    who = who or record.get("unit", "") or "-"
    time = f"{record['t']:12.6f}"
    body = f"{who:<{WHO_WIDTH}}  {record['type']:<{TYPE_WIDTH}}  "
    status = record.get("status", "")
    if not status:
        return _painted(time, (body + what).rstrip(), record, colour)
    took = f"{record['duration_us']:.1f} us" if "duration_us" in record else ""
    problem = record["fields"].get("problem", "")
    rest = f"{status:<{STATUS_WIDTH}} {took:>11}  {problem}"
    return _painted(time, f"{body}{what:<{WHAT_WIDTH}}  {rest}".rstrip(), record, colour)


def size_words(nbytes: int) -> str:
    """4096 as 4K; what is no whole number of K, M or G as it is."""
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if nbytes and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift}{unit}"
    return str(nbytes)


def _printable(text: str) -> str:
    """`text` with escapes for what would be a new line, or a command to the terminal: a file may be anybody's."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _painted(time: str, rest: str, record: Record, colour: bool) -> str:
    rest = _printable(rest)
    if not colour:
        return f"{time}  {rest}"
    status = record.get("status", "OK")
    code = RED if status != "OK" else _COLOURS.get(record["kind"], "")
    return f"\x1b[{DIM}m{time}\x1b[0m  " + (f"\x1b[{code}m{rest}\x1b[0m" if code else rest)


def _range(start: str, end: str) -> str:
    nbytes = int(end, 16) - int(start, 16) + 1
    return f"{start}..{end} {size_words(nbytes):>5}" if nbytes > 0 else f"{start}..{end} (ends before it starts)"


def _endpoint(record: Record) -> str:
    name = record.get("function")
    return f"{record['endpoint']} ({name})" if name else str(record["endpoint"])


def _request(record: Record) -> str:
    fields = record["fields"]
    match record["type"]:
        case "ATTACH" if "domain" in fields:
            flags = f" {fields['flags']}" if fields.get("flags") else ""
            return f"{_endpoint(record)} to domain {fields['domain']}{flags}"
        case "DETACH" if "domain" in fields:
            return f"{_endpoint(record)} from domain {fields['domain']}"
        case "MAP" if "domain" in fields:
            access = _letters(fields["flags"])
            where = _range(fields["virt_start"], fields["virt_end"])
            return f"domain {fields['domain']} {where} -> {fields['phys_start']} {access}"
        case "UNMAP" if "domain" in fields:
            return f"domain {fields['domain']} {_range(fields['virt_start'], fields['virt_end'])}"
        case "PROBE" if "endpoint" in record:
            return _endpoint(record)
        case "ATTACH_PASID" | "DETACH_PASID" if "pasid" in fields:
            return _pair_request(record)
        case "PASID_ALLOC" if "first" in fields:
            return f"one of {fields['first']}..{fields['last']}"
        case "PASID_FREE" if "first" in fields:
            return f"{fields['first']}..{fields['last']}"
    return _any(record)


def _pair_request(record: Record) -> str:
    fields = record["fields"]
    pair = f"{_endpoint(record)} PASID {fields['pasid']}"
    if record["type"] == "DETACH_PASID":
        return f"{pair} from " + (
            f"domain {fields['domain']}" if fields["domain"] else "what the endpoint is attached to"
        )
    flags = f" {fields['flags']}" if fields.get("flags") else ""
    return f"{pair} follows the endpoint" if flags == " MIRROR_RID" else f"{pair} to domain {fields['domain']}{flags}"


def _held(record: Record) -> str:
    fields = record["fields"]
    accesses = "1 access" if fields["accesses"] == 1 else f"{fields['accesses']} accesses"
    whom = f"{accesses} in flight" if fields["accesses"] else "the host's PASID authority"
    whom = f"rule {fields['rule']}" if fields.get("rule") else whom
    return f"{_request(record)}  answered now, held {fields['held_us']:.1f} us for {whom}"


def _letters(flags: str) -> str:
    words = flags.split("|")
    known = [("READ", "r"), ("WRITE", "w"), ("MMIO", "m")]
    letters = "".join(letter if word in words else "-" for word, letter in known)
    unknown = [word for word in words if word and word not in dict(known)]
    return letters + "".join(f"+{word}" for word in unknown)


def _fault(record: Record) -> str:
    fields = record["fields"]
    if record["type"] == "DROPPED":
        return f"the queue of faults is full, {fields['total']} dropped so far"
    return f"{_endpoint(record)} {fields['access']:<5} {fields['iova']}{_with_pasid(fields)}"


def _dma(record: Record) -> str:
    fields = record["fields"]
    start, nbytes = fields["iova"], fields["nbytes"]
    end = f"0x{int(start, 16) + max(nbytes, 1) - 1:0{len(start) - 2}x}"
    pieces = f" in {fields['pieces']} pieces" if fields["pieces"] > 1 else ""
    return f"{fields['access']:<5} {start}..{end} {size_words(nbytes):>5}{pieces}{_with_pasid(fields)}"


def _with_pasid(fields: Mapping[str, Any]) -> str:
    return f" PASID {fields['pasid']}" if "pasid" in fields else ""


def _pasid(record: Record) -> str:
    fields = record["fields"]
    by_whom = f"through {record['unit']}" if "unit" in record else "for the host itself"
    match fields["what"]:
        case "allocated":
            return f"{fields['pasid']} is the VM's, allocated {by_whom}"
        case "refused":
            return f"none to be had {by_whom}: {fields['why']}"
        case "freed":
            pending = f"; in use still: {fields['pending']}" if fields["pending"] else ""
            return f"{fields['pasids']} freed{pending}"
        case "ended":
            return f"{fields['pasids']} not the VM's any more"
        case "attached" | "detached" as what:
            to, of = ("to", "follows") if what == "attached" else ("from", "follows no longer")
            where = f"{what} {to} domain {fields['domain']}" if "domain" in fields else f"{of} the endpoint"
            return f"{_endpoint(record)} PASID {fields['pasid']} {where}"
        case "quota":
            return f"the quota was {fields['before']}, now it is {fields['after']}"
        case "quota-exceeded":
            return f"the quota of {fields['quota']} is used up ({fields['used']} used)"
        case "lease":
            problem = f": {fields['problem']}" if "problem" in fields else ""
            return f"the lease is {fields['state']}{problem}"
        case "reclaimed":
            return f"{fields['pasids']} taken by an administrator" + (
                f": {fields['reason']}" if "reason" in fields else ""
            )
    return _any(record)


def _register(record: Record) -> str:
    fields = record["fields"]
    words = f"  {fields['words']}" if fields["words"] else ""
    value = "" if fields["register"] == "notify" else f" = {fields['value']}"
    return f"{fields['register']}{value}{words}"


def _reset(record: Record) -> str:
    fields = record["fields"]
    if fields["reset"] == "unit":
        more = {"system": ", bypass as at boot", "host": ", bypass as at boot (reset-unit)"}.get(
            fields.get("cause"), ""
        )
        return f"no endpoint is attached any more{more}"
    return {
        "virtio": "by the driver: status 0 was written",
        "function-level": "function-level (FLR)",
        "system": "with the whole machine",
        "power-on": "by power-on: it was removed, and is back",
        "new-driver": "by the driver: a start that is no resume proves it",
    }.get(fields["reset"], str(fields["reset"]))


def _bypass(record: Record) -> str:
    now = "untranslated" if record["fields"]["bypass"] else "not at all"
    return f"endpoints without a domain pass {now}"


def _error(record: Record) -> str:
    fields = record["fields"]
    where = f" at {fields['iova']}" if int(fields["iova"], 16) else ""
    return f"the device says {fields['code']}{where}"


def _irq(record: Record) -> str:
    fields = record["fields"]
    return f"vector {fields['vector']}" if "vector" in fields else str(fields["queue"])


def _rings(record: Record) -> str:
    fields = record["fields"]
    return f"{fields['rings']}: {fields['why']}"


def _run_state(record: Record) -> str:
    held = "nothing of vdev touches guest memory" if record["type"] == "STOPPED" else "work on guest memory goes on"
    by = record["fields"].get("by")
    return f"{held} ({by})" if by else held


def _endpoint_event(record: Record) -> str:
    what = {"ADDED": "waits for QEMU", "REMOVED": "is gone"}.get(record["type"], record["fields"].get("stage", ""))
    return f"{_endpoint(record)} {what}"


def _injected(record: Record) -> str:
    fields = dict(record["fields"])
    if record["type"] == "CLEARED":
        lost = [f"for good: {line}" for line in fields["terminal"]]
        return "; ".join([f"{fields['rules']} rules cleared", *fields["undone"], *lost])
    rule = f"rule {fields.pop('rule')}, {fields.pop('n')}"
    if record["type"] == "QEMU":
        problem, asked = fields.get("problem"), fields.get("command_line")
        done = f"not done by QEMU: {problem}" if problem else "QEMU has done its part"
        return f"{rule}: " + (f"QEMU is to do {asked}" if asked else done)
    note = f"; {fields.pop('note')}" if "note" in fields else ""
    how = f" ({fields.pop('with')})" if "with" in fields else ""
    what = f"{fields.pop('do')}{how} at {fields.pop('at')}"
    end = fields.pop("iova_end", None)
    if end is not None:
        fields["iova"] = f"{fields['iova']}..{end}"
    met = [str(fields.pop("type"))] if "type" in fields else []
    met += [_endpoint(record)] if "endpoint" in record else []
    met += [f"{name} {value}" for name, value in fields.items()]
    return f"{rule}: {what}" + (f": {' '.join(met)}" if met else "") + note


def _any(record: Record) -> str:
    return " ".join(f"{name}={value}" for name, value in record["fields"].items() if name != "problem")


_WHAT: dict[str, Callable[[Record], str]] = {
    "request": _request,
    "held": _held,
    "fault": _fault,
    "dma": _dma,
    "register": _register,
    "reset": _reset,
    "bypass": _bypass,
    "error": _error,
    "irq": _irq,
    "rings": _rings,
    "connection": lambda record: f"process {record['fields']['pid']}",
    "run-state": _run_state,
    "endpoint": _endpoint_event,
    "pasid": _pasid,
    "injected": _injected,
    "note": lambda record: str(record["fields"]["text"]),
    "lost": lambda record: f"{record['fields']['count']} records: the reader was too slow for them",
    "trace": lambda record: str(record["fields"]["detail"]),
}
