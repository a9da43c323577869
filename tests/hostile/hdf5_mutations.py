"""Damage to sound HDF5 files; the number of a case decides everything about it."""

import random
import struct

# Where HDF5's superblock says how long the file is, versions 0 and 2.
END_OF_FILE = {0: 40, 2: 28, 3: 28}
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def damaged(seeds: list[bytes], case: int) -> bytes:
    """A sound file with one to six kinds of damage."""
    chance = random.Random(case)  # noqa: S311  reproducible, not secret
    content = bytearray(seeds[case % len(seeds)])
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        chance.choice(_DAMAGES)(content, chance)
    return bytes(content)


def _place(content: bytearray, chance: random.Random) -> int:
    """A place in the file, most often where something is written, pixels excepted."""
    for _ in range(20):
        at = chance.randrange(len(content))
        if any(content[at : at + 4]):
            break
    return at


def _flip_bits(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        content[_place(content, chance)] ^= 1 << chance.randrange(8)


def _set_byte(content: bytearray, chance: random.Random) -> None:
    content[_place(content, chance)] = chance.choice((0, 1, 2, 3, 4, 0x7F, 0x80, 0xFE, 0xFF))


def _set_number(content: bytearray, chance: random.Random) -> None:
    width = chance.choice((2, 4, 8))
    at = min(_place(content, chance), len(content) - width)
    value = chance.choice(NUMBERS) % 2 ** (8 * width)
    content[at : at + width] = value.to_bytes(width, "little")


def _raise_number(content: bytearray, chance: random.Random) -> None:
    at = min(_place(content, chance), len(content) - 8)
    value = int.from_bytes(content[at : at + 8], "little") + chance.choice(
        (-8, -1, 1, 8, 64, 2**20)
    )
    content[at : at + 8] = (value % 2**64).to_bytes(8, "little")


def _copy_block(content: bytearray, chance: random.Random) -> None:
    length = chance.choice((8, 16, 40, 256))
    source, target = _place(content, chance), _place(content, chance)
    block = bytes(content[source : source + length])
    content[target : target + len(block)] = block


def _blank_block(content: bytearray, chance: random.Random) -> None:
    length = chance.choice((8, 64, 512))
    at = _place(content, chance)
    content[at : at + length] = bytes(len(content[at : at + length]))


def _remove_bytes(content: bytearray, chance: random.Random) -> None:
    at = _place(content, chance)
    del content[at : at + chance.choice((1, 4, 8))]
    content.extend(bytes(8))


def _cut_and_hide(content: bytearray, chance: random.Random) -> None:
    """Truncates the file and writes the new length where the old one stood."""
    length = chance.randrange(len(content) // 4, len(content))
    del content[max(length, 100) :]
    at = END_OF_FILE.get(content[8])
    if at is not None:
        content[at : at + 8] = struct.pack("<Q", len(content))


def _cut(content: bytearray, chance: random.Random) -> None:
    del content[max(64, chance.randrange(len(content))) :]


_DAMAGES = (
    _flip_bits,
    _flip_bits,
    _set_byte,
    _set_byte,
    _set_number,
    _set_number,
    _raise_number,
    _copy_block,
    _blank_block,
    _remove_bytes,
    _cut_and_hide,
    _cut,
)
