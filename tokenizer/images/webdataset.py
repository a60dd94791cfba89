"""Images in tar archives in WebDataset's layout: members that share a base name are one sample.

Nothing is ever extracted: the headers are read once, and an image is read at its offset in the archive.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from ..foundation.errors import CodaError, shown
from .folders import IMAGE_SUFFIXES
from .imagenet import imagenet_classes, index_of_wnid
from .labels import labels_are_imagenets, name_numbers
from .source import BrokenImage, ImageSource, too_large
from .tar_headers import FOLDER, HARD_LINK, REGULAR, SYMBOLIC_LINK, DamagedArchive, TarHeader, read_headers

_MAX_LABEL_BYTES = 64
_MAX_OPEN = 64  # archives


class ArchiveSource(ImageSource):
    """Samples of tar archives, in the archives' order: an image and, as `.cls`, its label.

    The number of classes, `num_classes`, is counted up to the largest label if None.
    """

    kind = "WebDataset"

    def __init__(self, paths: list[str], location: str, num_classes: int | None = None) -> None:
        self.location, self._archives = shown(location), [Path(path) for path in paths]
        self._samples: list[_Member] = []
        self._changed: list[int] = []
        has_wnids = False
        for number, path in enumerate(self._archives):
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                members = list(_members(file.fileno(), path, number, status.st_size))
            has_wnids |= any(member.is_wnid for member in members)
            self._changed.append(status.st_mtime_ns)
            self._samples += _samples(members)
        largest = max(range(len(self)), key=self.label, default=None)
        highest, where = (-1, location) if largest is None else (self.label(largest), self.key(largest))
        if highest >= 0 and (has_wnids or labels_are_imagenets(self)):
            highest = max(highest, len(imagenet_classes()) - 1)
        self.num_classes, self.class_names = name_numbers(highest, num_classes, f"{location}: {where}")
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
        sample = self._samples[i]
        return shown(f"{self._archives[sample.archive].name}/{sample.stem}{sample.suffix}")

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
        archive: Index of the archive.
        base: Name up to the first dot of the file's own name. Members that share it are one sample.
        stem: Name without the last suffix, which is `suffix`: `dog.v2.jpg` is `dog.v2` and `.jpg`.
        label: Content of a `.cls`, then label of the images that it belongs to; -1 for "no label", None if unknown.
        problem: Why it cannot be read, if so.
    """

    archive: int
    base: str
    stem: str
    suffix: str
    offset: int = -1
    size: int = 0
    label: int | None = None
    is_wnid: bool = False
    problem: str | None = None


def _samples(members: list[_Member]) -> list[_Member]:
    """The images of one archive, with their labels: neighbors that share a base name, as in WebDataset.

    Labels that stand apart from their images (an archive with all images first, then all labels) are matched by name.
    """
    samples: list[_Member] = []
    images_of: dict[str, list[_Member]] = defaultdict(list)
    apart: list[list[_Member]] = []
    for base, group in groupby(members, key=lambda member: member.base):
        together = list(group)
        images = [member for member in together if member.suffix in IMAGE_SUFFIXES]
        if any(image.stem == base for image in images):
            # `dog.mask.png` beside `dog.jpg` is something else about the same image, unless it has its own label
            stems = {base, *(member.stem for member in together if member.suffix == ".cls")}
            images = [image for image in images if image.stem in stems]
        if images:
            _set_labels(images, together)
            images_of[base] += images
        else:
            problem = next((member.problem for member in together if member.problem), "the sample has no image")
            images = [_Member(together[0].archive, base, base, "", problem=problem)]
            apart.append(images + together)
        samples += images
    matched = set()
    for placeholder, *together in apart:
        unlabeled = [image for image in images_of[placeholder.base] if image.label is None]
        _set_labels(unlabeled, together)
        if unlabeled:
            matched.add(id(placeholder))
    return [sample for sample in samples if id(sample) not in matched]


def _set_labels(images: list[_Member], members: list[_Member]) -> None:
    """Give the images of a sample the labels, and the problems, of all its members."""
    labels = {member.stem: member for member in members if member.suffix == ".cls"}
    problem = next((member.problem for member in members if member.problem), None)
    stems = {image.stem for image in images}
    others = [stem for stem in labels if stem not in stems]
    for image in images:
        found = labels.get(image.stem) or labels.get(image.base)
        if found is None and len(others) == 1:
            found = labels[others[0]]
        elif found is None and others:
            names = " and ".join(f"{stem}.cls" for stem in others)
            problem = problem or f"has the labels {names}, none of which is {image.stem}.cls"
        image.label = found.label if found else None
        image.problem = image.problem or problem


def _members(file: int, path: Path, archive: int, length: int) -> Iterator[_Member]:
    """The members of one archive; damage that hides what comes after is one more, broken, member."""
    last = None
    try:
        for header in read_headers(file, length):
            last = header.name
            place = PurePosixPath(header.name)
            # hidden files, such as macOS's `._dog.jpg`, are not samples
            if header.kind == FOLDER or any(part[0] == "." and part != ".." for part in place.parts):
                continue
            first, dot, suffixes = place.name.partition(".")
            base = header.name[: len(header.name) - len(place.name)] + first
            more, dot, suffix = (dot + suffixes).lower().rpartition(".")
            member = _Member(archive, base, base + more, dot + suffix, header.offset, header.size)
            member.problem = _problem(header, place, length)
            if member.suffix == ".cls" and member.problem is None:
                _read_label(file, member)
            yield member
            if header.offset + header.size > length:
                return
    except DamagedArchive:
        if last is None:
            message = f"{path} is not an uncompressed tar archive; WebDataset shards are plain .tar files"
            raise CodaError(message) from None
        yield _Member(archive, "(end)", "(end)", "", problem=f"the archive is cut short or damaged after {last}")


def _read_label(file: int, member: _Member) -> None:
    text = os.pread(file, min(member.size, _MAX_LABEL_BYTES), member.offset).decode("ascii", "replace").strip()
    if re.fullmatch(r"-?\d+", text, re.ASCII):
        member.label = max(-1, int(text))
        return
    member.label = index_of_wnid(text)
    member.is_wnid = member.label is not None
    if member.label is None:
        member.problem = f"its label {text!r} is not a class index"


def _problem(member: TarHeader, place: PurePosixPath, length: int) -> str | None:
    """Why a member cannot be read, if so; `length` is the archive's."""
    if member.kind in (SYMBOLIC_LINK, HARD_LINK):
        return f"is a link to {member.link}"
    if member.kind != REGULAR:
        return "is not a regular file"
    if place.is_absolute() or ".." in place.parts:
        return "its path leads out of the archive"
    if member.offset + member.size > length:
        return "the archive ends within it"
    return too_large(member.size)
