"""The boot sector of the tests without an operating system: how its listing becomes bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_tests.bare_metal import LISTING, ORIGIN, SECTOR_NBYTES, assemble, boot_disk, main

SIGNATURE = b"\x55\xaa"


def test_labels_become_distances_from_the_next_instruction_and_addresses() -> None:
    listing = """
    back:
        eb rel8:back       | jmp back
        e9 rel32:on        | jmp on
        b8 abs32:on        | mov eax, on
        0f 01 16 abs16:on  | lgdt [on]
    on:
        f4                 | hlt ; abs32:nowhere is a comment
    """

    code = assemble(listing, 0x7C00)

    assert code.hex(" ") == "eb fe e9 0a 00 00 00 b8 11 7c 00 00 0f 01 16 11 7c f4"


@pytest.mark.parametrize(
    ("listing", "problem"),
    [
        ("eb rel8:nowhere", "there is no such label"),
        ("a:\n" + "90\n" * 127 + "eb rel8:a", "out of reach"),
    ],
)
def test_a_label_that_is_unknown_or_too_far_is_an_error(listing: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        assemble(listing, ORIGIN)


def test_the_program_is_one_sector_a_bios_boots(tmp_path: Path) -> None:
    path = tmp_path / "stub.img"

    assert main([str(path)]) == 0

    disk = path.read_bytes()
    assert disk == boot_disk()
    assert disk[SECTOR_NBYTES - 2 : SECTOR_NBYTES] == SIGNATURE
    assert disk.startswith(assemble(LISTING, ORIGIN))
    assert not any(disk[SECTOR_NBYTES:])
    assert len(disk) >= 16 * 63 * SECTOR_NBYTES  # a cylinder


def test_without_a_file_it_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
