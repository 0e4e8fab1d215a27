"""The kernel's own names of its code, to say where a processor is that was looked at from outside."""

from __future__ import annotations

from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")
CODE = "tTwW"
Place = tuple[int, int, str]  # from where, to where (not in it), the function's name


def places(*words: str) -> list[Place]:
    """The functions of the running kernel and its modules that have one of `words` in their names, by address."""
    lines = [line.split() for line in KALLSYMS.read_text().splitlines()]
    found = sorted((int(address, 16), name) for address, kind, name, *_ in lines if kind in CODE)
    ends = [start for start, _ in found[1:]]
    return [
        (start, end, name)
        for (start, name), end in zip(found, ends, strict=False)
        if any(word in name for word in words)
    ]


def name_at(address: int, known: list[Place]) -> str:
    """The function that `address` is in; empty if it is in none of those known."""
    return next((name for start, end, name in known if start <= address < end), "")
