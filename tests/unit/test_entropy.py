"""Where random bytes come from."""

from __future__ import annotations

from hashlib import sha256

from vdev.backends.entropy import open_entropy


def test_a_seed_gives_the_documented_stream_however_it_is_drawn() -> None:
    expected = b"".join(sha256(f"7:{number}".encode()).digest() for number in range(4))

    whole = open_entropy(7)(100)
    source = open_entropy(7)
    pieces = b"".join(source(nbytes) for nbytes in (1, 0, 31, 33, 35))

    assert whole == pieces == expected[:100]


def test_sources_of_one_seed_are_independent_and_other_seeds_differ() -> None:
    first, second = open_entropy(7), open_entropy(7)
    first(50)

    assert second(64) == open_entropy(7)(64)
    assert open_entropy(8)(64) != open_entropy(7)(64)


def test_the_host_gives_as_much_as_one_asks_for() -> None:
    source = open_entropy(None)

    assert len(source(100_000)) == 100_000
    assert source(32) != source(32)
    assert source(0) == b""
