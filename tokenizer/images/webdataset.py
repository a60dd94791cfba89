"""Images in tar archives as WebDataset lays them out: members of one base name are one sample.

Nothing is ever extracted: the headers are read once, and an image is read at its offset in the archive.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..foundation.errors import CodaError
from .folders import IMAGE_SUFFIXES
from .imagenet import index_of_wnid
from .labels import name_numbers
from .source import MAX_ENCODED_BYTES, BrokenImage, ImageSource

_MAX_LABEL_BYTES = 64


@dataclass(slots=True)
class _Sample:
    """One sample: where its image lies, its label, and what is wrong with it, if anything."""

    archive: int
    key: str
    offset: int = -1
    size: int = 0
    label: int = -1
    problem: str | None = None


class ArchiveSource(ImageSource):
    """Samples of tar archives, in the archives' order: an image and, as `.cls`, its label."""

    kind = "WebDataset"

    def __init__(self, paths: list[str], location: str) -> None:
        self.location, self._archives = location, [Path(path) for path in paths]
        self._samples = [sample for number in range(len(paths)) for sample in _samples(self._archives[number], number)]
        self.num_classes, self.class_names = name_numbers(max((s.label for s in self._samples), default=-1))
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, i: int) -> bytes:
        """The encoded image; BrokenImage where there is none."""
        sample = self._samples[i]
        if sample.problem is not None:
            raise BrokenImage(sample.problem)
        # Reading at an offset does not move the handle, so processes that inherit it can share it.
        if sample.archive not in self._handles:
            self._handles[sample.archive] = os.open(self._archives[sample.archive], os.O_RDONLY)
        content = os.pread(self._handles[sample.archive], sample.size, sample.offset)
        if len(content) < sample.size:
            raise BrokenImage("the archive ends within it")
        return content

    def key(self, i: int) -> str:
        """Archive and member."""
        return self._samples[i].key

    def label(self, i: int) -> int:
        """Class of the item, -1 if it has none."""
        return self._samples[i].label

    def identity(self, i: int) -> str:
        """Place and size of the member."""
        sample = self._samples[i]
        return f"{sample.offset} {sample.size} {sample.problem or ''}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}  # another process opens its own

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def _samples(path: Path, number: int) -> Iterator[_Sample]:
    """Samples of one archive; neighbouring members that share a base name belong together, as WebDataset has it."""
    with open(path, "rb") as file:
        for name, group in groupby(_members(file, path), key=lambda member: member.base):
            members = list(group)
            label = next((member.label for member in members if member.label is not None), -1)
            problem = next((member.problem for member in members if member.problem), None)
            # `photo.jpg` before `photo.mask.png`, which is something else about the same photograph
            images = [member for member in members if member.suffix in IMAGE_SUFFIXES] or [
                member for member in members if PurePosixPath(member.suffix).suffix in IMAGE_SUFFIXES
            ]
            if not images:
                yield _Sample(number, f"{path.name}/{name}", problem=problem or "the sample has no image")
            for image in images:
                key = f"{path.name}/{name}{image.suffix}"
                yield _Sample(number, key, image.offset, image.size, label, image.problem or problem)


@dataclass(slots=True)
class _Member:
    """One member of an archive: `base` + `suffix` is its name, cut at the first dot of the file's own name."""

    base: str
    suffix: str
    offset: int = -1
    size: int = 0
    label: int | None = None
    problem: str | None = None


def _members(file: BinaryIO, path: Path) -> Iterator[_Member]:
    """The members of one archive, streamed; damage that hides what comes after is one more, broken, member."""
    last, length = None, path.stat().st_size
    try:
        # "r:" reads no compressed archive: members of one cannot be reached by offset.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (header := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep the headers of a whole archive
                last = header.name
                if not header.isdir():
                    yield _member(file, header, length)
                if header.isreg() and header.offset_data + header.size > length:
                    return
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:  # the mark that ends an archive
                raise tarfile.ReadError
    except tarfile.ReadError:
        if last is None:
            raise CodaError(f"{path} is no uncompressed tar archive; WebDataset shards are plain .tar files") from None
        yield _Member("(end)", "", problem=f"the archive is cut short or damaged after {last}")


def _member(file: BinaryIO, header: tarfile.TarInfo, length: int) -> _Member:
    place = PurePosixPath(header.name)
    stem, dot, suffix = place.name.partition(".")
    member = _Member(header.name[: len(header.name) - len(place.name)] + stem, (dot + suffix).lower())
    member.offset, member.size = header.offset_data, header.size
    member.problem = _problem(header, place, length)
    if member.suffix == ".cls" and member.problem is None:
        file.seek(header.offset_data)
        text = file.read(min(header.size, _MAX_LABEL_BYTES)).decode("ascii", "replace").strip()
        member.label = int(text) if text.isascii() and text.isdigit() else index_of_wnid(text)
        if member.label is None:
            member.problem = f"its label {text!r} is no class index"
    return member


def _problem(member: tarfile.TarInfo, place: PurePosixPath, length: int) -> str | None:
    """Why a member is not to be read, if so; `length` is the archive's."""
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname}"
    if not member.isreg() or member.issparse():
        return "is no regular file"
    if place.is_absolute() or ".." in place.parts:
        return "its path leads out of the archive"
    if member.offset_data + member.size > length:
        return "the archive ends within it"
    if member.size > MAX_ENCODED_BYTES:
        return f"is {member.size:,} bytes large, more than any photograph"
    return None
