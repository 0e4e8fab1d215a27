"""A guest without an operating system: 512 bytes that the BIOS boots, and that do what they are told over COM1.

    python -m guest_tests.bare_metal stub.img
    make shell DISK=stub.img

It is a program of loads, stores and port accesses of the person's (or a test's) choice, from before any driver exists.
Numbers are hexadecimal, a command is one capital letter; docs/firmware-dma.md has a session.

    NUMBER@         the address of what follows, memory or port
    NUMBER W X Y    store 4, 2 or 1 bytes of NUMBER there
    R S T           load 4, 2 or 1 bytes from there
    NUMBER O, I     4 bytes to or from the port
    E               no more echo
    Z               halt with interrupts off, for ever

Loads and stores answer with eight digits and the end of the line: the number loaded or stored. What is typed is echoed;
anything else is ignored.

**It never touches memory but where it is told to**: no stack, no variables, interrupts off, and no segment descriptor
that the processor would mark as accessed. Between a store to a register and the next command RAM is as it was.

The source is a listing, machine code beside its meaning, so that nobody needs an assembler to run it. It runs on any
host QEMU emulates x86 on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ORIGIN = 0x7C00  # where a BIOS puts a boot sector
SECTOR_NBYTES = 512
IMAGE_NBYTES = 1 << 20  # a BIOS reads no disk of less than a cylinder
READY = b"bare metal"  # what it says when it takes commands

# bytes | what they are. `rel8:x` is how far label x is from the next instruction, `abs16:x` and `abs32:x` where it is.
LISTING = """
start:
    fa                          | cli
    31 c0                       | xor ax, ax
    8e d8                       | mov ds, ax
    0f 01 16 abs16:gdt_pointer  | lgdt [gdt_pointer]
    0f 20 c0                    | mov eax, cr0
    0c 01                       | or al, 1                  ; protected mode
    0f 22 c0                    | mov cr0, eax
    ea abs16:flat 08 00         | jmp 8:flat
flat:                           ; 32 bits, all of memory
    b8 10 00 00 00              | mov eax, 16
    8e d8                       | mov ds, ax
    bc 01 00 00 00              | mov esp, 1
    66 ba fa 03                 | mov dx, 3fah
    b0 01                       | mov al, 1                 ; FIFO on
    ee                          | out dx, al
    31 ff                       | xor edi, edi
    be abs32:greeting           | mov esi, greeting
greet:
    8a 26                       | mov ah, [esi]
    46                          | inc esi
    bd abs32:greet              | mov ebp, greet
    84 e4                       | test ah, ah
    75 rel8:put                 | jnz put
next:                           ; esi: address, edi: number, esp: whether to echo (there is no stack)
    66 ba fd 03                 | mov dx, 3fdh
hear:
    ec                          | in al, dx
    a8 01                       | test al, 1                ; a byte has come
    74 rel8:hear                | jz hear
    b2 f8                       | mov dl, 0f8h
    ec                          | in al, dx
    88 c3                       | mov bl, al
    88 c4                       | mov ah, al
    bd abs32:heard              | mov ebp, heard
    85 e4                       | test esp, esp
    74 rel8:heard               | jz heard
put:                            ; send ah, go on at ebp
    66 ba fd 03                 | mov dx, 3fdh
put_wait:
    ec                          | in al, dx
    a8 20                       | test al, 20h              ; there is room
    74 rel8:put_wait            | jz put_wait
    b2 f8                       | mov dl, 0f8h
    88 e0                       | mov al, ah
    ee                          | out dx, al
    ff e5                       | jmp ebp
heard:
    80 fb 40                    | cmp bl, '@'
    74 rel8:address             | je address
    80 fb 45                    | cmp bl, 'E'
    74 rel8:quiet               | je quiet
    80 fb 49                    | cmp bl, 'I'
    74 rel8:port_in             | je port_in
    80 fb 4f                    | cmp bl, 'O'
    74 rel8:port_out            | je port_out
    80 fb 52                    | cmp bl, 'R'
    74 rel8:load4               | je load4
    80 fb 53                    | cmp bl, 'S'
    74 rel8:load2               | je load2
    80 fb 54                    | cmp bl, 'T'
    74 rel8:load1               | je load1
    80 fb 57                    | cmp bl, 'W'
    74 rel8:store4              | je store4
    80 fb 58                    | cmp bl, 'X'
    74 rel8:store2              | je store2
    80 fb 59                    | cmp bl, 'Y'
    74 rel8:store1              | je store1
    80 fb 5a                    | cmp bl, 'Z'
    74 rel8:halt                | je halt
    0f b6 c3                    | movzx eax, bl
    2c 30                       | sub al, '0'
    0f 82 rel32:next            | jb next
    3c 0a                       | cmp al, 10
    72 rel8:digit               | jb digit
    2c 27                       | sub al, 39                ; 'a' is 10
    3c 0a                       | cmp al, 10
    0f 82 rel32:next            | jb next
    3c 10                       | cmp al, 16
    0f 83 rel32:next            | jae next
digit:
    c1 e7 04                    | shl edi, 4
    09 c7                       | or edi, eax
    e9 rel32:next               | jmp next
address:
    89 fe                       | mov esi, edi
    31 ff                       | xor edi, edi
    e9 rel32:next               | jmp next
quiet:
    31 e4                       | xor esp, esp
    e9 rel32:next               | jmp next
halt:
    f4                          | hlt
    eb rel8:halt                | jmp halt
load4:
    8b 06                       | mov eax, [esi]
    eb rel8:answer              | jmp answer
load2:
    0f b7 06                    | movzx eax, word [esi]
    eb rel8:answer              | jmp answer
load1:
    0f b6 06                    | movzx eax, byte [esi]
    eb rel8:answer              | jmp answer
port_in:
    89 f2                       | mov edx, esi
    ed                          | in eax, dx
    eb rel8:answer              | jmp answer
port_out:
    89 f2                       | mov edx, esi
    89 f8                       | mov eax, edi
    ef                          | out dx, eax
    eb rel8:answer              | jmp answer
store4:
    89 3e                       | mov [esi], edi
    eb rel8:stored              | jmp stored
store2:
    66 89 3e                    | mov [esi], di
    eb rel8:stored              | jmp stored
store1:
    89 f8                       | mov eax, edi
    88 06                       | mov [esi], al
stored:
    89 f8                       | mov eax, edi
answer:                         ; eight digits of eax
    89 c3                       | mov ebx, eax
    31 ff                       | xor edi, edi
    b9 08 00 00 00              | mov ecx, 8
    b4 20                       | mov ah, ' '
    bd abs32:answer_digit       | mov ebp, answer_digit
    e9 rel32:put                | jmp put
answer_digit:
    c1 c3 04                    | rol ebx, 4
    88 dc                       | mov ah, bl
    80 e4 0f                    | and ah, 15
    80 c4 30                    | add ah, '0'
    80 fc 3a                    | cmp ah, ':'
    72 03                       | jb +3
    80 c4 27                    | add ah, 39
    bd abs32:answered           | mov ebp, answered
    e9 rel32:put                | jmp put
answered:
    49                          | dec ecx
    75 rel8:answer_digit        | jnz answer_digit
    b4 0d                       | mov ah, CR
    bd abs32:line_end           | mov ebp, line_end
    e9 rel32:put                | jmp put
line_end:
    b4 0a                       | mov ah, LF
    bd abs32:next               | mov ebp, next
    e9 rel32:put                | jmp put
greeting:
    62 61 72 65 20 6d 65 74 61 6c 0d 0a 00  | "bare metal", CR, LF, 0
gdt:                            ; both marked as accessed already
    00 00 00 00 00 00 00 00
    ff ff 00 00 00 9b cf 00     | 8: code, 4 GiB
    ff ff 00 00 00 93 cf 00     | 16: data, 4 GiB
gdt_pointer:
    17 00 abs32:gdt
"""

_WIDTHS = {"rel8": 1, "rel32": 4, "abs16": 2, "abs32": 4}
_LABEL = re.compile(r"(\w+):$")


def assemble(listing: str, origin: int) -> bytes:
    """The bytes of a listing that is loaded at `origin`. ValueError for an unknown label or one too far away."""
    instructions: list[list[str]] = []
    labels: dict[str, int] = {}
    at = origin
    for line in listing.splitlines():
        words = line.partition("|")[0].partition(";")[0].split()
        if words and (label := _LABEL.match(words[0])):
            labels[label[1]] = at
            continue
        instructions.append(words)
        at += sum(_WIDTHS.get(word.partition(":")[0], 1) for word in words)
    code = bytearray()
    for words in instructions:
        stop = origin + len(code) + sum(_WIDTHS.get(word.partition(":")[0], 1) for word in words)
        for word in words:
            code += _encoded(word, labels, stop)
    return bytes(code)


def _encoded(word: str, labels: dict[str, int], stop: int) -> bytes:
    """One word of a listing; `stop` is where its instruction ends."""
    kind, _, label = word.partition(":")
    if not label:
        return bytes.fromhex(word)
    if label not in labels:
        raise ValueError(f"{word}: there is no such label")
    is_distance = kind.startswith("rel")
    try:
        return (labels[label] - stop * is_distance).to_bytes(_WIDTHS[kind], "little", signed=is_distance)
    except OverflowError:
        raise ValueError(f"{word} is out of reach") from None


def boot_disk() -> bytes:
    """The image of a raw disk whose boot sector is the program."""
    code = assemble(LISTING, ORIGIN)
    sector = code.ljust(SECTOR_NBYTES - 2, b"\0") + b"\x55\xaa"
    if len(sector) != SECTOR_NBYTES:
        raise ValueError(f"{len(code)} bytes of code leave the boot sector")
    return sector.ljust(IMAGE_NBYTES, b"\0")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the disk image to the file named."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m guest_tests.bare_metal FILE\n")
        return 2
    Path(arguments[0]).write_bytes(boot_disk())
    return 0


if __name__ == "__main__":
    sys.exit(main())
