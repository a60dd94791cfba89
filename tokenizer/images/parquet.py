"""Images in parquet files as the Hugging Face hub lays them out: `image` = {bytes, path} and `label`.

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

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..foundation.errors import CodaError
from .labels import name_numbers, number_names
from .source import BrokenImage, ImageSource

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
# Rows can only be decoded a row group at a time; the newest groups are kept, up to this size.
_KEPT_BYTES = 256 * 2**20


class TableSource(ImageSource):
    """Rows of parquet files, in the files' order.

    Labels are the integers of the label column, with the class names of the hub's metadata if there are any, or names,
    which are then numbered in sorted order.
    """

    kind = "parquet"

    def __init__(self, paths: list[str], location: str) -> None:
        self.location, self._files = location, [Path(path) for path in paths]
        self._columns: _Columns | None = None
        self._footers: list[str] = []
        self._image_paths: list[Any] = []  # per file the column of paths, if there is one
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        group_rows: list[int] = []
        file_rows: list[int] = []
        labels: list[Any] = []
        for number, path in enumerate(self._files):
            file = _open(path)
            columns = _find_columns(file.schema_arrow, path)
            if self._columns is not None and columns != self._columns:
                raise CodaError(f"{path} has other columns than {self._files[0]}; the files of a source are alike")
            self._columns = columns
            self._image_paths.append(_read(file, f"{columns.image}.path") if columns.has_path else None)
            labels += _read(file, columns.label).to_pylist() if columns.label else [None] * file.metadata.num_rows
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._groups += [(number, group) for group in range(len(rows))]
            group_rows += rows
            file_rows.append(sum(rows))
            self._footers.append(_footer_checksum(path))
        self._first_of_group = [0, *accumulate(group_rows)]
        self._first_of_file = [0, *accumulate(file_rows)]
        self._set_labels(labels, _class_names(_open(self._files[0]).schema_arrow, self._columns))
        self._forget_handles()

    def _set_labels(self, values: list[Any], names: list[str] | None) -> None:
        """Turn the label column into class indices and name the classes."""
        kinds = {type(value) for value in values} - {type(None)}
        if kinds == {str}:
            names = sorted({value for value in values if value is not None})
            place = {name: number for number, name in enumerate(names)}
            values = [None if value is None else place[value] for value in values]
        elif not kinds <= {int}:
            spelled = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise CodaError(f"{self.location}: its labels are of type {spelled}; they must be integers or names")
        numbers = [-1 if value is None or value < 0 else value for value in values]
        highest = max(numbers, default=-1)
        if names is None or highest < 0:
            self.num_classes, self.class_names = name_numbers(highest)
        elif highest >= len(names):
            raise CodaError(f"{self.location}: label {highest} where only {len(names)} classes are named")
        else:
            indices, self.class_names = number_names(names)
            self.num_classes = len(self.class_names)
            numbers = [-1 if number < 0 else indices[number] for number in numbers]
        self._labels = numbers

    def __len__(self) -> int:
        return self._first_of_group[-1]

    def read(self, i: int) -> bytes:
        """The encoded image; BrokenImage where there is none."""
        place = bisect_right(self._first_of_group, i) - 1
        content = self._group(self._groups[place])[i - self._first_of_group[place]].as_py()
        if content is None:
            raise BrokenImage("the row has no bytes")
        return content

    def _group(self, group: tuple[int, int]) -> Any:
        """The encoded images of one row group, in pyarrow's memory."""
        if self._process != os.getpid():  # handles are not shared with the process that this one was forked from
            self._forget_handles()
        if group not in self._kept:
            number, place = group
            if number not in self._handles:
                self._handles[number] = _open(self._files[number])
            assert self._columns is not None
            try:
                self._kept[group] = _read(self._handles[number], self._columns.encoded, place)
            except (OSError, ValueError) as error:  # pyarrow's errors are these; the system's have a number
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise BrokenImage(f"its row group cannot be read: {str(error).splitlines()[0]}") from None
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
        return f"{self._files[number].name}/{row}" + (f"/{path}" if path else "")

    def label(self, i: int) -> int:
        """Class of the item, -1 if it has none."""
        return self._labels[i]

    def identity(self, i: int) -> str:
        """Size and checksum of the file's footer."""
        return self._footers[bisect_right(self._first_of_file, i) - 1]

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
    has_path = "path" in fields(schema.field(image).type)
    return _Columns(image, f"{image}.bytes" if image in structs else image, has_path, label)


def _class_names(schema: pa.Schema, columns: _Columns | None) -> list[str] | None:
    """The names in the hub's metadata (datasets.ClassLabel), if the file carries any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[columns.label if columns else None]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CodaError(f"{path} is no parquet file, or is cut short") from None


def _read(file: pq.ParquetFile, name: str, group: int | None = None) -> Any:
    """One column, or one field of a column (`image.bytes`), of a row group or of the whole file.

    Threads are not used: they do not survive a fork into loading processes.
    """
    table = file.read([name], use_threads=False) if group is None else file.read_row_group(group, [name], None, False)
    column = table.column(0)
    return pc.struct_field(column, name.rpartition(".")[2]) if pa.types.is_struct(column.type) else column


def _footer_checksum(path: Path) -> str:
    """Size and checksum of a file's footer, which knows the size and statistics of every column."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - 8 - length))
        return f"{size} {hashlib.sha256(file.read()).hexdigest()}"
