"""`vdev ctl pasid`: a VM's PASIDs, or those of all VMs of the host, as tables; and an administrator's orders.

    vdev ctl pasid list                      every VM of the host
    vdev ctl pasid show [VM]                 one VM, PASID by PASID
    vdev ctl pasid quota [VM] NUMBER         another quota, from now on
    vdev ctl pasid reclaim [VM] --pasid N    take one back, or --all

Without VM the command goes to one VM itself (its monitor, or vdev's control socket). With VM, or for `list`, it goes to
the host's PASID authority, which knows all of them and has the last word.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdev.authority.messages import ADMIN_SOCKET
from vdev.authority.start import default_directory
from vdev.ctl.client import Client, ControlClient
from vdev.ctl.target import Target, dial
from vdev.ctl.text import table
from vdev.errors import ConfigError
from vdev.qapi.schema import schema

ANSWER_S = 30.0
PAGE = 4096

Reply = dict[str, Any]


def run(argv: Sequence[str]) -> int:
    """The exit status. ConfigError: the input is wrong. VdevError: the command was refused, or not answered."""
    given = _parser().parse_args(argv)
    is_of_host = given.authority is not None or given.vm is not None
    if is_of_host and (given.runtime_dir is not None or given.socket is not None):
        raise ConfigError(
            "vdev ctl pasid", "a VM's socket and another place are given", "the authority takes VM, or --authority"
        )
    if given.action == "list":
        is_of_host = given.runtime_dir is None and given.socket is None
    elif is_of_host and given.vm is None:
        raise ConfigError(f"vdev ctl pasid {given.action}", "names no VM", "vdev ctl pasid list shows them")
    shown = _HOST[given.action](given) if is_of_host else _VM[given.action](given)
    for line in [json.dumps(shown)] if given.json else _TEXT[given.action](shown):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="vdev ctl pasid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    actions = found.add_subparsers(dest="action", metavar="list|show|quota|reclaim", required=True)
    for name, text in (
        ("list", "every VM: its quota, what it uses"),
        ("show", "one VM's PASIDs"),
        ("quota", "give a VM another quota"),
        ("reclaim", "take PASIDs from a VM"),
    ):
        one = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        _add_places(one)
        if name == "list":
            one.set_defaults(vm=None)
            continue
        one.add_argument("vm", nargs="?", metavar="VM", help="its name or the number of its set, of the authority's")
        if name == "quota":
            one.add_argument("quota", type=_number, metavar="NUMBER", help="of PASIDs it may have")
        if name == "reclaim":
            which = one.add_mutually_exclusive_group(required=True)
            which.add_argument("--pasid", type=_number, help="one, as the VM knows it")
            which.add_argument("--all", action="store_true", help="all, and every one to come")
            one.add_argument("--force", action="store_true", help="at once, whatever still uses them")
        if name != "show":
            one.add_argument("--reason", default="", help="for the audit")
    return found


def _add_places(one: argparse.ArgumentParser) -> None:
    one.add_argument("--authority", type=Path, metavar="DIR", help="the host authority's directory")
    where = one.add_mutually_exclusive_group()
    where.add_argument("--runtime-dir", type=Path, metavar="DIR", help="of one VM")
    where.add_argument("--socket", type=Path, metavar="PATH", help="a VM's control.sock or monitor")
    one.add_argument("--json", action="store_true", help="the reply as it came")


def _number(text: str) -> int:
    return int(text, 0)


# of the host's authority


def _ask_authority(given: argparse.Namespace, command: str, arguments: Mapping[str, Any]) -> Any:
    path = (given.authority or default_directory()) / ADMIN_SOCKET
    client = ControlClient(dial(path, "give --authority: the directory of a running vdev authority"), path)
    try:
        return client.execute(command, arguments, ANSWER_S)
    finally:
        client.close()


def _order(given: argparse.Namespace) -> tuple[str, Reply]:
    """The order the words give, without whom it is about."""
    reason = {"reason": given.reason} if given.reason else {}
    if given.action == "quota":
        return "pasid-quota", {"quota": given.quota, **reason}
    which = {"all": True} if given.all else {"pasid": given.pasid}
    return "pasid-reclaim", {**which, **({"force": True} if given.force else {}), **reason}


def _order_authority(given: argparse.Namespace) -> Any:
    command, arguments = _order(given)
    return _ask_authority(given, command, {"vm": given.vm, **arguments})


_HOST: dict[str, Callable[[argparse.Namespace], Any]] = {
    "list": lambda given: _ask_authority(given, "query-pasid-vms", {}),
    "show": lambda given: _ask_authority(given, "query-pasids", {"vm": given.vm}),
    "quota": _order_authority,
    "reclaim": _order_authority,
}


# of one VM


def _ask_vm(given: argparse.Namespace, ask: Callable[[Client], Any], command: str) -> Any:
    client = Target(given.runtime_dir, given.socket).connect(schema().commands[command], schema().prefix)
    try:
        return ask(client)
    finally:
        client.close()


def _set_of_vm(given: argparse.Namespace) -> list[Reply]:
    return [_ask_vm(given, lambda client: client.execute("query-pasid-set", {}, ANSWER_S), "query-pasid-set")]


def _pasids_of_vm(given: argparse.Namespace) -> Reply:
    def ask(client: Client) -> Reply:
        known: Reply = client.execute("query-pasid-set", {}, ANSWER_S)
        pasids: list[Reply] = []
        following: int | None = 0
        while following is not None:
            page = client.execute("query-pasids", {"from": following, "limit": PAGE}, ANSWER_S)
            pasids += page["pasids"]
            following = page.get("next")
        return {**known, "pasids": pasids}

    found: Reply = _ask_vm(given, ask, "query-pasids")
    return found


def _order_vm(given: argparse.Namespace) -> Any:
    command, arguments = _order(given)
    return _ask_vm(given, lambda client: client.execute(command, arguments, ANSWER_S), command)


_VM: dict[str, Callable[[argparse.Namespace], Any]] = {
    "list": _set_of_vm,
    "show": _pasids_of_vm,
    "quota": _order_vm,
    "reclaim": _order_vm,
}


# for people


def _sets(shown: Sequence[Reply]) -> list[str]:
    rows = []
    for one in shown:
        lease, states = one.get("lease", {}), one["states"]
        rows.append(
            {
                "vm": one["vm"],
                "set": one.get("set", lease.get("set", "-")),
                **({"pid": one["pid"]} if "pid" in one else {}),
                "state": one.get("state", lease.get("state", "-")),
                "quota": one["quota"],
                "used": one["used"],
                **states,
            }
        )
    return table(rows) if rows else ["none"]


def _pasids(shown: Reply) -> list[str]:
    lines = _sets([shown])
    rows = []
    for one in shown["pasids"]:
        pairs = ", ".join(_pair(pair) for pair in one.get("pairs", ())) or "-"
        host = {"host": f"{one['host']:#x}"} if "host" in one else {"owner": one["owner"], "attached to": pairs}
        rows.append({"pasid": f"{one['pasid']:#x}", "state": one["state"], **host})
    return [*lines, "", *table(rows)] if rows else lines


def _pair(pair: Reply) -> str:
    return f"{pair['endpoint']} " + (f"in domain {pair['domain']}" if "domain" in pair else "as it is itself")


def _ordered(shown: Reply) -> list[str]:
    return [f"{name}: {shown[name]}" for name in ("quota", "used", "taken") if name in shown]


_TEXT: dict[str, Callable[[Any], list[str]]] = {
    "list": _sets, "show": _pasids, "quota": _ordered, "reclaim": _ordered,
}  # fmt: skip
