"""Headers of an uncompressed tar archive (ustar, pax, GNU), read without trusting them.

`tarfile` follows negative sizes back to where it came from, and reads extended headers of any size into memory. Here
the position only grows, each header is checked, and an extended one is at most 1 MiB long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = 512
_MAX_EXTENDED_BYTES, _MAX_NAME_BYTES = 2**20, 2**12
REGULAR, SYMBOLIC_LINK, HARD_LINK, FOLDER = b"0", b"2", b"1", b"5"
_WITHOUT_CONTENT = b"123456"  # links, devices, folders and pipes, whatever their size field says
_SPARSE = b"S"


class DamagedArchive(Exception):
    """The next header cannot be read; nothing after it can be found."""


@dataclass(slots=True)
class TarHeader:
    """One member: `size` bytes at `offset`, of a kind that is a type flag of POSIX; `link` is a link's target."""

    name: str
    kind: bytes
    offset: int
    size: int
    link: str


def read_headers(file: int, length: int) -> Iterator[TarHeader]:
    """Members of the archive with descriptor `file` and `length` bytes; the last may reach over its end.

    Raises:
        DamagedArchive: A header is damaged or absurd, or the mark that ends an archive is missing.
    """
    position = 0
    extended: dict[str, str] = {}
    while position < length:
        block = os.pread(file, _BLOCK, position)
        if block == bytes(_BLOCK):
            return
        header = _parse(block, position + _BLOCK)
        position = header.offset
        if header.kind in b"xXLKg":
            if not header.size <= min(_MAX_EXTENDED_BYTES, length - position):
                raise DamagedArchive
            if header.kind != b"g":  # of the whole archive: comments
                extended |= _extended(header.kind, os.pread(file, header.size, position))
            position += _padded(header.size)
            continue
        header.name = extended.get("path", header.name)
        header.link = extended.get("linkpath", header.link)
        if "size" in extended and header.kind not in _WITHOUT_CONTENT:
            header.size = _number(extended["size"].encode(), 10)
        more = header.kind == _SPARSE and block[482]
        while more and position < length:  # further blocks of a sparse file's map
            more = os.pread(file, _BLOCK, position)[504:505] == b"\1"
            position += _BLOCK
        if "sparse" in extended:
            header.kind = _SPARSE
        yield header
        position += _padded(header.size)
        extended = {}
    raise DamagedArchive


def _parse(block: bytes, offset: int) -> TarHeader:
    if len(block) < _BLOCK or _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise DamagedArchive
    name, link, kind = _text(block[:100]), _text(block[157:257]), block[156:157]
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    if kind in b"\07":
        kind = FOLDER if name.endswith("/") else REGULAR
    return TarHeader(name, kind, offset, 0 if kind in _WITHOUT_CONTENT else _number(block[124:136]), link)


def _extended(kind: bytes, content: bytes) -> dict[str, str]:
    """Fields of an extended header, which describe the member after it."""
    if kind in b"LK":
        if len(content) > _MAX_NAME_BYTES + 1:  # and the zero at the end
            raise DamagedArchive
        return {"path" if kind == b"L" else "linkpath": _text(content)}
    found, start = {}, 0
    while start < len(content) and content[start]:  # records "LENGTH KEYWORD=VALUE\n"
        digits, space, _ = content[start : start + 16].partition(b" ")
        end = start + _number(digits, 10)
        keyword, equals, value = content[start + len(digits) + 1 : end - 1].partition(b"=")
        if not space or not equals or end > len(content):
            raise DamagedArchive
        if keyword in (b"path", b"linkpath", b"size"):
            if len(value) > _MAX_NAME_BYTES:
                raise DamagedArchive
            found[keyword.decode()] = _text(value)
        elif keyword.startswith(b"GNU.sparse."):
            found["sparse"] = ""
        start = end
    return found


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes, base: int = 8) -> int:
    """A number written in digits or, with the highest bit set, in binary."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if len(digits) > 20 or not (digits or b"0").isdigit() or (base == 8 and max(digits, default=0) > ord("7")):
        raise DamagedArchive
    return int(digits or b"0", base)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
