"""Images in tar archives in WebDataset's layout: members that share a base name are one sample.

Nothing is ever extracted: the headers are read once, and an image is read at its offset in the archive.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from ..foundation.errors import CodaError, shown
from .folders import IMAGE_SUFFIXES
from .imagenet import imagenet_classes, index_of_wnid
from .labels import name_numbers
from .source import MAX_ENCODED_BYTES, BrokenImage, ImageSource
from .tar_headers import FOLDER, HARD_LINK, REGULAR, SYMBOLIC_LINK, DamagedArchive, TarHeader, read_headers

_MAX_LABEL_BYTES = 64
_MAX_OPEN = 64  # archives


@dataclass(slots=True)
class _Sample:
    """One sample: where its image is, its label (None if nothing gives one), and what is wrong with it, if anything."""

    archive: int
    key: str
    stem: str = ""
    offset: int = -1
    size: int = 0
    label: int | None = None
    problem: str | None = None


class ArchiveSource(ImageSource):
    """Samples of tar archives, in the archives' order: an image and, as `.cls`, its label.

    Args:
        paths: The archives.
        location: Them all, as the user wrote it.
        num_classes: Number of classes; counted up to the largest label if None.
    """

    kind = "WebDataset"

    def __init__(self, paths: list[str], location: str, num_classes: int | None = None) -> None:
        self.location, self._archives = shown(location), [Path(path) for path in paths]
        self._samples: list[_Sample] = []
        self._changed: list[int] = []
        named = False
        for number, path in enumerate(self._archives):
            file = os.open(path, os.O_RDONLY)
            try:
                status = os.fstat(file)
                members = list(_members(file, path, status.st_size))
            finally:
                os.close(file)
            named |= any(member.is_wnid for member in members)
            self._changed.append(status.st_mtime_ns)
            self._samples += _samples(members, path.name, number)
        labels = [-1 if sample.label is None else sample.label for sample in self._samples]
        highest = max(labels, default=-1)
        where = f"{location}: {self._samples[labels.index(highest)].key}" if labels else location
        if named and highest < len(imagenet_classes()):
            highest = len(imagenet_classes()) - 1
        self.num_classes, self.class_names = name_numbers(highest, num_classes, where)
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, i: int) -> bytes:
        """The encoded image; BrokenImage where there is none."""
        sample = self._samples[i]
        if sample.problem is not None:
            raise BrokenImage(sample.problem)
        if sample.archive not in self._handles:
            if len(self._handles) == _MAX_OPEN:
                os.close(self._handles.pop(next(iter(self._handles))))
            self._handles[sample.archive] = os.open(self._archives[sample.archive], os.O_RDONLY)
        # Reading at an offset does not move the handle, so processes that inherit it can share it.
        content = os.pread(self._handles[sample.archive], sample.size, sample.offset)
        if len(content) < sample.size:
            raise BrokenImage("the archive ends within it")
        return content

    def key(self, i: int) -> str:
        """Archive and member."""
        return self._samples[i].key

    def label(self, i: int) -> int:
        """Class of the item, -1 if it has none."""
        label = self._samples[i].label
        return -1 if label is None else label

    def identity(self, i: int) -> str:
        """Place and size of the member, and when its archive was last changed."""
        sample = self._samples[i]
        return f"{sample.offset} {sample.size} {sample.problem or ''} {self._changed[sample.archive]}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}  # another process opens its own

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


@dataclass(slots=True)
class _Member:
    """One member of an archive.

    Attributes:
        base: Its name up to the first dot of the file's own name: members of one base are one sample.
        stem: Its name without the last suffix, which `suffix` is: `dog.v2.jpg` is `dog.v2` and `.jpg`.
        label: What a `.cls` holds; -1 for "no label".
    """

    base: str
    stem: str
    suffix: str
    offset: int = -1
    size: int = 0
    label: int | None = None
    is_wnid: bool = False
    problem: str | None = None


def _samples(members: list[_Member], archive: str, number: int) -> list[_Sample]:
    """Samples of one archive: neighbors that share a base name, as in WebDataset.

    Labels that stand apart from their images (an archive with all images first, then all labels) are matched by name.
    """
    samples: list[_Sample] = []
    with_image: dict[str, list[_Sample]] = defaultdict(list)
    apart: list[tuple[_Sample, list[_Member]]] = []
    for base, group in groupby(members, key=lambda member: member.base):
        together = list(group)
        images = [member for member in together if member.suffix in IMAGE_SUFFIXES]
        if any(image.stem == base for image in images):
            # `dog.mask.png` beside `dog.jpg` is something else about the same image, unless it has its own label
            stems = {base, *(member.stem for member in together if member.suffix == ".cls")}
            images = [image for image in images if image.stem in stems]
        stems = {image.stem for image in images}
        for image in images:
            sample = _Sample(
                number, shown(f"{archive}/{image.stem}{image.suffix}"), image.stem, image.offset, image.size
            )
            sample.problem = image.problem
            _set_label(sample, base, together, stems)
            samples.append(sample)
            with_image[base].append(sample)
        if not images:
            problem = next((member.problem for member in together if member.problem), "the sample has no image")
            samples.append(_Sample(number, shown(f"{archive}/{base}"), base, problem=problem))
            apart.append((samples[-1], together))
    matched: set[int] = set()
    for sample, together in apart:
        waiting = [other for other in with_image[sample.stem] if other.label is None]
        stems = {other.stem for other in with_image[sample.stem]}
        for other in waiting:
            _set_label(other, sample.stem, together, stems)
        if waiting:
            matched.add(id(sample))
    return [sample for sample in samples if id(sample) not in matched]


def _set_label(sample: _Sample, base: str, members: Sequence[_Member], stems: set[str]) -> None:
    """Give a sample the label, and the problem, of members with its base name; `stems` are those of all its images."""
    labels = {member.stem: member for member in members if member.suffix == ".cls"}
    found = labels.get(sample.stem) or labels.get(base)
    others = [stem for stem in labels if stem not in stems]
    if found is None and len(others) == 1:
        found = labels[others[0]]
    elif found is None and others:
        names = " and ".join(f"{shown(stem)}.cls" for stem in others)
        sample.problem = sample.problem or f"has the labels {names}, none of which is {shown(sample.stem)}.cls"
    sample.label = found.label if found else None
    sample.problem = sample.problem or next((member.problem for member in members if member.problem), None)


def _members(file: int, path: Path, length: int) -> Iterator[_Member]:
    """The members of one archive; damage that hides what comes after is one more, broken, member."""
    last = None
    try:
        for header in read_headers(file, length):
            last = header.name
            place = PurePosixPath(header.name)
            # hidden files, such as macOS's `._dog.jpg`, are not samples
            if header.kind != FOLDER and not any(part[0] == "." and part != ".." for part in place.parts):
                yield _member(file, header, place, length)
            if header.offset + header.size > length:
                return
    except DamagedArchive:
        if last is None:
            raise CodaError(
                f"{path} is not an uncompressed tar archive; WebDataset shards are plain .tar files"
            ) from None
        yield _Member("(end)", "(end)", "", problem=f"the archive is cut short or damaged after {shown(last)}")


def _member(file: int, header: TarHeader, place: PurePosixPath, length: int) -> _Member:
    stem, dot, suffixes = place.name.partition(".")
    base = header.name[: len(header.name) - len(place.name)] + stem
    more, dot, suffix = (dot + suffixes).lower().rpartition(".")
    member = _Member(base, base + more, dot + suffix, header.offset, header.size)
    member.problem = _problem(header, place, length)
    if member.suffix == ".cls" and member.problem is None:
        text = os.pread(file, min(header.size, _MAX_LABEL_BYTES), header.offset).decode("ascii", "replace").strip()
        if re.fullmatch(r"-?\d+", text, re.ASCII):
            member.label = max(-1, int(text))
        else:
            member.label = index_of_wnid(text)
            member.is_wnid = member.label is not None
        if member.label is None:
            member.problem = f"its label {text!r} is not a class index"
    return member


def _problem(member: TarHeader, place: PurePosixPath, length: int) -> str | None:
    """Why a member cannot be read, if so; `length` is the archive's."""
    if member.kind in (SYMBOLIC_LINK, HARD_LINK):
        return f"is a link to {shown(member.link)}"
    if member.kind != REGULAR:
        return "is not a regular file"
    if place.is_absolute() or ".." in place.parts:
        return "its path leads out of the archive"
    if member.offset + member.size > length:
        return "the archive ends within it"
    if member.size > MAX_ENCODED_BYTES:
        return f"its {member.size:,} bytes are more than any image has"
    return None
