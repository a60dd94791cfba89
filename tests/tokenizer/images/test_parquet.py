from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import open_images

from .conftest import GOLDEN, TENCH, WNIDS, jpeg, listed, problems, save_parquet, shade


def test_parquet_rows_come_in_order_over_files_and_row_groups(tmp_path: Path) -> None:
    save_parquet(tmp_path / "train-0.parquet", range(0, 70, 10), [5, 999, 0, 1, 2, 3, 4], row_group_size=3)
    save_parquet(tmp_path / "train-1.parquet", range(70, 150, 10), list(range(8)), row_group_size=3)
    source = open_images(tmp_path)
    assert len(source) == 15
    for i in (14, 0, 7, 6, 3, 11):
        assert shade(source, i) == i * 10
    assert (source.key(1), source.label(1)) == ("train-0.parquet/1/10.jpg", 999)
    assert (source.key(14), source.label(14)) == ("train-1.parquet/7/140.jpg", 7)
    assert (source.num_classes, source.class_names) == (1000, WNIDS)
    assert shade(pickle.loads(pickle.dumps(source)), 9) == 90


def test_rows_without_bytes_are_named(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "x.parquet", [10, None, 30], [1, None, -1])
    source = open_images(path)
    assert problems(source) == {"x.parquet/1/None.jpg": "the row has no bytes"}
    assert [source.label(i) for i in range(3)] == [1, -1, -1]
    pq.write_table(pa.table({"image": pa.array([None], pa.struct([("bytes", pa.binary())]))}), path)
    assert problems(open_images(path)) == {"x.parquet/0": "the row has no bytes"}


@pytest.mark.parametrize(
    ("names", "labels", "expected", "num_classes"),
    [
        (["cat", "dog", "emu"], [2, 0], [2, 0], 3),
        ([TENCH, GOLDEN], [1, 0], [207, 0], 1000),
        (None, [1500, 3], [1500, 3], 1501),
        (None, [1, 3], [1, 3], 4),
        (None, [999, -5], [999, -1], 1000),
        (None, ["dog", "cat"], [1, 0], 2),
        (None, [GOLDEN, None], [207, -1], 1000),
        (None, None, [-1, -1], 0),
        (["cat", "dog"], [-1, -1], [-1, -1], 0),
    ],
)
def test_parquet_labels_mean_what_the_file_says(
    tmp_path: Path, names: list[str] | None, labels: Any, expected: list[int], num_classes: int
) -> None:
    source = open_images(save_parquet(tmp_path / "x.parquet", [10, 20], labels, names))
    assert [source.label(0), source.label(1)] == expected
    assert source.num_classes == num_classes
    if source.class_names is not None:
        assert len(source.class_names) == num_classes


@pytest.mark.parametrize(
    ("first", "second", "names", "labels"),
    [
        (["cat", "dog", "emu"], ["emu", "cat", "dog"], ["cat", "dog", "emu"], [0, 1, 2, 0]),
        (["cat", "dog"], ["emu", "cat"], ["cat", "dog", "emu"], [0, 1, 2, 0]),
        ([TENCH, GOLDEN], [GOLDEN, TENCH], WNIDS, [0, 207, 207, 0]),
        (["cat", "dog"], None, None, None),
        (["cat", "cat"], ["cat", "dog"], None, None),
    ],
)
def test_classes_of_several_files_are_matched_by_name(
    tmp_path: Path, first: list[str], second: list[str] | None, names: list[str] | None, labels: Any
) -> None:
    for file, classes in (("a", first), ("b", second)):
        save_parquet(tmp_path / f"{file}.parquet", [10, 20], [0, 1], names=classes)
    if labels is None:
        with pytest.raises(CodaError, match="does not name its classes as"):
            open_images(tmp_path)
    else:
        source = open_images(tmp_path)
        assert (source.class_names, [source.label(i) for i in range(4)]) == (names, labels)


def test_a_small_table_that_unpacks_to_gigabytes_takes_no_memory(
    tmp_path: Path, mebibytes: Callable[..., float]
) -> None:
    images = [{"bytes": jpeg(0) + bytes(2**20), "path": "x.jpg"}] * 350
    for name, table, options in [
        ("repeated", {"image": images}, {}),
        ("plain", {"image": images}, {"use_dictionary": False}),
        ("label", {"image": [jpeg(0)] * 300, "label": ["x" * 2**20] * 300}, {}),
    ]:
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet", compression="zstd", **options)
    save_parquet(tmp_path / "small.parquet", range(3), ["a", "b", "c"])
    prepare = """
from coda.tokenizer.images import BrokenImage, open_images

def read_last(name):
    try:
        source = open_images(f"{sys.argv[1]}/{name}.parquet")
        source.read(len(source) - 1)
    except BrokenImage as error:
        assert "unpacks to" in str(error), error

read_last("small")
"""
    assert mebibytes(prepare, "for name in ('repeated', 'plain', 'label'): read_last(name)", tmp_path) < 250


def test_images_may_be_a_column_of_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "jpg": [jpeg(10), jpeg(20)], "cls": [4, 5]}), tmp_path / "x.parquet")
    source = open_images(tmp_path / "x.parquet")
    assert [shade(source, i) for i in range(2)] == [10, 20]
    assert listed(source) == [("x.parquet/0", 4), ("x.parquet/1", 5)]


def test_parquet_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    good = save_parquet(tmp_path / "a.parquet", [10], [1])
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:-30])
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "text.parquet")
    save_parquet(tmp_path / "floats.parquet", [10], [1.5])
    save_parquet(tmp_path / "b.parquet", [10])
    save_parquet(tmp_path / "few.parquet", [10], [1], names=["cat"])
    for name, message in [
        ("cut", "is not a parquet file, or is cut short"),
        ("text", "has no column of images.* its columns are text, label"),
        ("floats", "they must be integers or names"),
        ("[ab]", "has other columns than"),
        ("few", "label 1 where only 1 classes are named"),
    ]:
        with pytest.raises(CodaError, match=message):
            open_images(tmp_path / f"{name}.parquet")


def test_a_damaged_row_group_loses_its_rows_alone(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "x.parquet", range(0, 60, 10), row_group_size=2, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + 40 : start + column.total_compressed_size] = b"\x55" * (column.total_compressed_size - 40)
    path.write_bytes(content)
    source = open_images(path)
    found = problems(source)
    assert list(found) == ["x.parquet/2/20.jpg", "x.parquet/3/30.jpg"]
    assert all("row group" in reason and "\n" not in reason for reason in found.values())
