"""Images in parquet files in the layout of Hugging Face datasets: `image` = {bytes, path} and `label`.

Needs pyarrow; `open_images` says so where it is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..foundation.errors import CodaError, first_line, shown
from .imagenet import imagenet_classes
from .labels import labels_are_imagenets, name_numbers, number_names
from .source import MAX_ENCODED_BYTES, BrokenImage, ImageSource, too_large

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
# Rows can only be decoded a row group at a time; the newest groups are kept, up to this size.
_KEPT_BYTES = 256 * 2**20
_BATCH_BYTES = 64 * 2**20
_MAX_OPEN = 64  # files
_MAX_RATIO = 32  # encoded images hardly compress; beyond `MAX_ENCODED_BYTES`, what unpacks to more is refused


_Labels = tuple[np.ndarray, list[str] | None]  # of one file: (N,) int64, -1 for none, and the classes' names


class TableSource(ImageSource):
    """Rows of parquet files, in the files' order.

    Labels are the integers of the label column, with the class names of the files' metadata if there are any, or
    names, which are then numbered in sorted order. `num_classes` is counted up to the largest label if None.
    """

    kind = "parquet"

    def __init__(self, paths: list[str], location: str, num_classes: int | None = None) -> None:
        self.location, self._files = shown(location), [Path(path) for path in paths]
        self._columns: _Columns | None = None
        self._identities: list[str] = []
        self._image_paths: list[Any] = []  # per file the column of paths, if there is one
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        group_rows: list[int] = []
        file_rows: list[int] = []
        labels: list[_Labels] = []
        for number, path in enumerate(self._files):
            file = _open(path)
            columns = _find_columns(file.schema_arrow, path)
            if self._columns is not None and columns != self._columns:
                raise CodaError(f"{path} has other columns than {self._files[0]}; the files of a source are alike")
            self._columns = columns
            self._image_paths.append(_read_strings(path, f"{columns.image}.path") if columns.has_path else None)
            labels.append(_read_labels(file, path, columns))
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._groups += [(number, group) for group in range(len(rows))]
            group_rows += rows
            file_rows.append(sum(rows))
            self._identities.append(_identity(path))
        self._first_of_group = [0, *accumulate(group_rows)]
        self._first_of_file = [0, *accumulate(file_rows)]
        self._set_labels(labels, num_classes)
        self._forget_handles()

    def _set_labels(self, files: list[_Labels], num_classes: int | None) -> None:
        """Give the classes of all files one numbering, and name them."""
        self._labels = np.concatenate([numbers for numbers, _ in files])
        highest = int(self._labels.max(initial=-1))
        if highest < 0 or all(names is None for _, names in files):
            if highest >= 0 and labels_are_imagenets(self):
                highest = max(highest, len(imagenet_classes()) - 1)
            self.num_classes, self.class_names = name_numbers(highest, num_classes, self.location)
            return
        all_names = files[0][1] or []
        differ = any(names != all_names for _, names in files)
        for path, (numbers, names) in zip(self._files, files, strict=True):
            most = int(numbers.max(initial=-1))
            if (names is None and most >= 0) or (differ and names and len(set(names)) < len(names)):
                raise CodaError(f"{path} does not name its classes as {self._files[0]} does; give one of them")
            if most >= len(names or []):
                raise CodaError(f"{path}: label {most} where only {len(names or [])} classes are named")
        if differ:  # the classes are those of all files, matched by name
            all_names = list(dict.fromkeys(name for _, names in files for name in names or []))
            if self._columns is not None and self._columns.label_is_name:
                all_names.sort()
        indices, self.class_names = number_names(all_names, num_classes)
        self.num_classes = len(self.class_names)
        place = dict(zip(all_names, indices, strict=True))
        renumbered = [indices if names == all_names else [place[name] for name in names or []] for _, names in files]
        self._labels = np.concatenate(
            [np.array([*new, -1])[numbers] for new, (numbers, _) in zip(renumbered, files, strict=True)]
        )

    def __len__(self) -> int:
        return self._first_of_group[-1]

    def read(self, i: int) -> bytes:
        """The encoded image; BrokenImage where there is none."""
        place = bisect_right(self._first_of_group, i) - 1
        content = self._group(self._groups[place])[i - self._first_of_group[place]].as_py()
        if content is None:
            raise BrokenImage("the row has no bytes")
        if problem := too_large(len(content)):
            raise BrokenImage(problem)
        return content

    def _group(self, group: tuple[int, int]) -> Any:
        """The encoded images of one row group, in pyarrow's memory."""
        if self._process != os.getpid():  # handles are not shared with the process that this one was forked from
            self._forget_handles()
        if group not in self._kept:
            number, place = group
            if number not in self._handles:
                if len(self._handles) == _MAX_OPEN:
                    self._handles.pop(next(iter(self._handles)))
                self._handles[number] = _open(self._files[number])
            assert self._columns is not None
            try:
                self._kept[group] = _read_group(
                    self._handles[number], self._files[number], self._columns.encoded, place
                )
            except (OSError, ValueError) as error:  # pyarrow's errors are these; the system's have a number
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise BrokenImage(f"its row group cannot be read: {first_line(error)}") from None
            while len(self._kept) > 1 and sum(column.nbytes for column in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]

    def key(self, i: int) -> str:
        """File, row and, where the row names one, the image's path."""
        number = bisect_right(self._first_of_file, i) - 1
        row = i - self._first_of_file[number]
        paths = self._image_paths[number]
        path = paths[row].as_py() if paths is not None else None
        return shown(f"{self._files[number].name}/{row}" + (f"/{path[:1000]}" if path else ""))

    def label(self, i: int) -> int:
        """Class of the item, -1 if it has none."""
        return int(self._labels[i])

    def identity(self, i: int) -> str:
        """Size, footer and time of the last change of the item's file."""
        return self._identities[bisect_right(self._first_of_file, i) - 1]

    def _forget_handles(self) -> None:
        self._process = os.getpid()
        self._handles: dict[int, pq.ParquetFile] = {}
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}, "_kept": OrderedDict()}


@dataclass(frozen=True)
class _Columns:
    """Where a file keeps what: `encoded` is `image` itself or its field `bytes`."""

    image: str
    encoded: str
    has_path: bool
    label: str | None
    label_is_name: bool


def _find_columns(schema: pa.Schema, path: Path) -> _Columns:
    def holds_bytes(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def fields(kind: pa.DataType) -> list[str]:
        return [field.name for field in kind] if pa.types.is_struct(kind) else []

    structs = [field.name for field in schema if "bytes" in fields(field.type)]
    plain = [field.name for field in schema if field.name in _IMAGE_COLUMNS and holds_bytes(field.type)]
    candidates = [name for name in _IMAGE_COLUMNS if name in structs + plain] + structs
    if not candidates:
        raise CodaError(
            f"{path} has no column of images: a struct with `bytes`, or bytes named {', '.join(_IMAGE_COLUMNS)}; "
            f"its columns are {', '.join(schema.names)}"
        )
    image = candidates[0]
    label = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    kind = pa.null() if label is None else schema.field(label).type
    is_name = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    if not (is_name or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise CodaError(f"{path}: its labels are of type {kind}; they must be integers or names")
    has_path = "path" in fields(schema.field(image).type)
    label = None if pa.types.is_null(kind) else label
    return _Columns(image, f"{image}.bytes" if image in structs else image, has_path, label, is_name)


def _read_labels(file: pq.ParquetFile, path: Path, columns: _Columns) -> _Labels:
    if columns.label is None:
        return np.full(file.metadata.num_rows, -1), None
    if columns.label_is_name:
        column = _read_strings(path, columns.label).unify_dictionaries().combine_chunks()
        numbers = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        spelled = column.dictionary.to_pylist()
        names = sorted({str(spelled[i]) for i in np.unique(numbers) if i >= 0})
        place = {name: number for number, name in enumerate(names)}
        return np.array([*(place.get(str(name), -1) for name in spelled), -1])[numbers], names
    _check_size(file.metadata, path, columns.label)
    column = pc.fill_null(file.read([columns.label], use_threads=False).column(0), -1)
    numbers = np.clip(column.to_numpy().astype(np.float64), -1, 2**53).astype(np.int64)  # unsigned ones too
    return numbers, _class_names(file.schema_arrow, columns.label)


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """The class names in the metadata (datasets.ClassLabel), if the file carries any."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _open(path: Path, **options: Any) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CodaError(f"{path} is not a parquet file, or is cut short") from None
    size = path.stat().st_size
    if file.metadata.num_rows > max(size, 2**20):
        raise CodaError(f"{path} claims {file.metadata.num_rows:,} rows in {size:,} bytes")
    return file


def _check_size(metadata: pq.FileMetaData, path: Path, name: str, groups: range | None = None) -> int:
    """How many bytes row groups of a column unpack to; BrokenImage if that is absurd."""
    total = 0
    for number in range(metadata.num_row_groups) if groups is None else groups:
        group = metadata.row_group(number)
        for chunk in (group.column(i) for i in range(group.num_columns)):
            size = chunk.total_uncompressed_size
            if chunk.path_in_schema == name:
                packed_limit = max(MAX_ENCODED_BYTES, _MAX_RATIO * chunk.total_compressed_size)
                if not 0 <= size <= min(group.num_rows * MAX_ENCODED_BYTES, packed_limit):
                    raise BrokenImage(
                        f"the column {name} of {path.name} unpacks to {size:,} bytes, more than any images"
                    )
                total += size
    return total


def _read_group(file: pq.ParquetFile, path: Path, name: str, group: int) -> Any:
    """One column, or one field of a column (`image.bytes`), of a row group.

    Read in batches of at most `_BATCH_BYTES`, or as a dictionary if values repeat, which would otherwise take
    memory over and over. Threads are not used: they do not survive a fork into loading processes.
    """
    size = _check_size(file.metadata, path, name, range(group, group + 1))
    rows = min(1024, max(1, _BATCH_BYTES // max(1, size)))  # each could be all of it
    chunks, held = [], 0
    for batch in file.iter_batches(rows, [group], [name], use_threads=False):
        chunks.append(_field(batch.column(0), name))
        held += chunks[-1].nbytes
        if held > size + _BATCH_BYTES:
            file = _open(path, read_dictionary=[name])
            return _field(file.read_row_group(group, [name], use_threads=False).column(0), name)
    return pa.chunked_array(chunks)


def _read_strings(path: Path, name: str) -> Any:
    """A column of strings of a whole file, as a dictionary: a value that repeats is held once."""
    file = _open(path, read_dictionary=[name])
    _check_size(file.metadata, path, name)
    groups = [file.read_row_group(group, [name], use_threads=False) for group in range(file.num_row_groups)]
    chunks = [chunk for table in groups for chunk in _field(table.column(0), name).chunks]
    return pa.chunked_array(chunks, None if chunks else pa.dictionary(pa.int32(), pa.string()))


def _field(column: Any, name: str) -> Any:
    return pc.struct_field(column, name.rpartition(".")[2]) if pa.types.is_struct(column.type) else column


def _identity(path: Path) -> str:
    """Size and time of change of a file, and a checksum of its footer, which has the statistics of every column."""
    status = path.stat()
    with open(path, "rb") as file:
        file.seek(status.st_size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, status.st_size - 8 - length))
        return f"{status.st_size} {hashlib.sha256(file.read()).hexdigest()} {status.st_mtime_ns}"
