"""Data sets as one finds them: every item is read right, or left out by name with the reason, and all are counted."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from coda.tokenizer import CodaTokenizer, CodeCache, export_cache
from coda.tokenizer.foundation.errors import CodaError

from .conftest import tokenize

OddItems = dict[str, tuple[bytes, Image.Image | str]]


@pytest.fixture
def expected(tokenizer: CodaTokenizer, odd_items: OddItems, tmp_path: Path) -> CodeCache:
    """The codes of the good ones, each given as the plain image that it shows."""
    (tmp_path / "plain").mkdir()
    for name, (_, inside) in odd_items.items():
        if isinstance(inside, Image.Image):
            inside.convert("RGB").save(tmp_path / "plain" / f"{name}.png")
    return CodeCache(tokenize(tokenizer, tmp_path / "plain", tmp_path / "expected", batch_size=1).path)


def save_folder(items: OddItems, place: Path) -> str:
    place.mkdir()
    for name, (content, _) in items.items():
        (place / name).write_bytes(content)
    return str(place)


def save_tar(items: OddItems, place: Path) -> str:
    place.mkdir()
    with tarfile.open(place / "x.tar", "w") as tar:
        for name, (content, _) in items.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(place)


def save_parquet(items: OddItems, place: Path) -> str:
    place.mkdir()
    images = [{"bytes": content, "path": name} for name, (content, _) in items.items()]
    pq.write_table(pa.table({"image": images}), place / "x.parquet", row_group_size=6)
    return str(place)


@pytest.mark.parametrize("save", [save_folder, save_tar, save_parquet])
def test_odd_items_are_read_right_or_left_out_with_the_reason(
    tokenizer: CodaTokenizer,
    odd_items: OddItems,
    expected: CodeCache,
    tmp_path: Path,
    save: Callable[[OddItems, Path], str],
) -> None:
    summary = tokenize(tokenizer, save(odd_items, tmp_path / "odd"), tmp_path / "cache", batch_size=1)
    cache = CodeCache(summary.path)
    good = [name for name, (_, inside) in odd_items.items() if isinstance(inside, Image.Image)]
    assert summary.images == len(good) and summary.images + len(summary.skipped) == len(odd_items)
    for i, name in enumerate(good):
        assert cache.key(i).lower().endswith(name.lower())
        assert torch.equal(cache[i][0], expected[i][0]), name
    reasons = {name: inside for name, (_, inside) in odd_items.items() if isinstance(inside, str)}
    for item, (name, reason) in zip(summary.skipped, reasons.items(), strict=True):
        assert item.key.endswith(name) and re.search(reason, item.reason), name
    assert cache.manifest["skipped"] == [vars(item) for item in summary.skipped]
    cache.verify()


def test_members_of_an_archive_that_are_no_pictures_and_its_lost_end_are_counted(
    tokenizer: CodaTokenizer, odd_items: OddItems, tmp_path: Path
) -> None:
    good = next(content for content, inside in odd_items.values() if isinstance(inside, Image.Image))
    secret = tmp_path / "secret.png"
    secret.write_bytes(good)
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        for name, kind in [("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
        for name in ("../out.png", "/root.png", "good.png", "cut.png"):
            last = tar.offset
            member = tarfile.TarInfo(name)
            member.size = len(good)
            tar.addfile(member, io.BytesIO(good))
    archive.write_bytes(archive.read_bytes()[: last + tarfile.BLOCKSIZE + 50])
    summary = tokenize(tokenizer, archive, tmp_path / "cache")
    assert {item.key: item.reason for item in summary.skipped} == {
        "x.tar/link.png": f"is a link to {secret}",
        "x.tar/hard.png": f"is a link to {secret}",
        "x.tar/../out.png": "its path leads out of the archive",
        "x.tar//root.png": "its path leads out of the archive",
        "x.tar/cut.png": "the archive ends within it",
    }
    assert summary.images == 1 and CodeCache(summary.path).key(0) == "x.tar/good.png"


def test_rows_without_bytes_are_counted(tokenizer: CodaTokenizer, odd_items: OddItems, tmp_path: Path) -> None:
    good = next(content for content, inside in odd_items.values() if isinstance(inside, Image.Image))
    images = [{"bytes": None, "path": "a.png"}, {"bytes": good, "path": "b.png"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": [4, 5, 6]}), tmp_path / "x.parquet")
    summary = tokenize(tokenizer, tmp_path / "x.parquet", tmp_path / "cache")
    assert {item.index: item.reason for item in summary.skipped} == dict.fromkeys((0, 2), "the row has no bytes")
    assert CodeCache(summary.path).labels.tolist() == [5]


def test_a_bad_item_more_than_are_allowed_stops_the_run(
    tokenizer: CodaTokenizer, odd_items: OddItems, tmp_path: Path
) -> None:
    data = save_folder(odd_items, tmp_path / "odd")
    with pytest.raises(CodaError, match=r"^01-truncated\.jpg in .*odd cannot be decoded"):
        tokenize(tokenizer, data, tmp_path / "strict", strict=True)
    with pytest.raises(CodaError, match=r"^11-cut\.png in .*; 4 others were left out already"):
        tokenize(tokenizer, data, tmp_path / "four", max_skipped=4)
    assert len(tokenize(tokenizer, data, tmp_path / "five", max_skipped=5).skipped) == 5


def test_names_that_are_not_text_go_through(tokenizer: CodaTokenizer, odd_items: OddItems, tmp_path: Path) -> None:
    good = next(content for content, inside in odd_items.values() if isinstance(inside, Image.Image))
    (tmp_path / "odd").mkdir()
    for name, content in ((b"caf\xe9.png", good), (b"\x1b[2J\xff.png", b"")):
        (tmp_path / "odd" / os.fsdecode(name)).write_bytes(content)
    summary = tokenize(tokenizer, tmp_path / "odd", tmp_path / "cache")
    cache = CodeCache(summary.path)
    assert (cache.num_images, len(summary.skipped)) == (1, 1) and cache.key(0).startswith("caf")
    cache.verify()
    for to in ("npy", "webdataset", "parquet"):
        export_cache(cache, tmp_path / to, to)
