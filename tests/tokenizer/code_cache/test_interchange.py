"""Code caches in other formats, read here without coda; and LlamaGen's folder as a code cache."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from coda.tokenizer import CodaError, CodaTokenizer, CodeCache, export_cache, import_npy
from coda.tokenizer.code_cache import CacheWriter, ShardRows
from coda.tokenizer.code_cache.format import TEN_CROP
from coda.tokenizer.images import Skipped

from ..conftest import content
from .conftest import make_header

ITEMS, SHARD, BROKEN = 11, 4, (1, 4)
KEPT = [i for i in range(ITEMS) if i not in BROKEN]
FORMATS = ("npy", "webdataset", "parquet")
MakeCache = Callable[..., CodeCache]


@pytest.fixture
def make(tokenizer: CodaTokenizer, tmp_path: Path) -> MakeCache:
    """Makes caches of nine images in three shards; the codes of an item are a function of its place."""

    def made(name: str = "cache", variants: tuple[str, ...] = ("original", "mirrored"), **other: Any) -> CodeCache:
        known = {"tokenizer_fingerprint": tokenizer.fingerprint, "preprocessing": {"size": [16, 12]}, "num_classes": 3}
        header = make_header(tokenizer.layout, ITEMS, SHARD, **(known | {"variants": variants} | other))
        writer = CacheWriter(tmp_path / name, header, tokenizer.value_table())
        for span in writer.remaining():
            here = [i for i in span if i not in BROKEN]
            rows = ShardRows(
                torch.stack([codes_of(i, len(variants)) for i in here]),
                torch.tensor([i % 4 - 1 for i in here]),
                torch.tensor(here),
                [f"ö/{i}.jpg" for i in here],
            )
            writer.append(rows, [Skipped(f"ö/{i}.jpg", "is empty", i) for i in span if i in BROKEN], span.stop)
        writer.finish()
        writer.close()
        return CodeCache(writer.path)

    return made


def codes_of(i: int, variants: int) -> torch.Tensor:
    return torch.randint(300, (variants, 74), generator=torch.Generator().manual_seed(i))


def test_npy_is_what_llamagen_writes(make: MakeCache, tmp_path: Path) -> None:
    out = export_cache(make(), tmp_path / "export")
    for kind in ("codes", "labels"):
        names = {path.name for path in (out / f"imagenet16_{kind}").iterdir()}
        assert names == {f"{place}.npy" for place in range(len(KEPT))}
    for place, i in enumerate(KEPT):
        codes = np.load(out / "imagenet16_codes" / f"{place}.npy")
        label = np.load(out / "imagenet16_labels" / f"{place}.npy")
        assert (codes.dtype, codes.shape, label.dtype, label.shape) == (np.int64, (1, 2, 74), np.int64, (1,))
        assert np.array_equal(codes[0], codes_of(i, 2)) and label[0] == i % 4 - 1
    fresh = io.BytesIO()
    np.save(fresh, codes_of(0, 2)[None].numpy())
    assert (out / "imagenet16_codes" / "0.npy").read_bytes() == fresh.getvalue()


def test_webdataset_has_three_members_per_image_and_no_time_or_user(make: MakeCache, tmp_path: Path) -> None:
    out = export_cache(make(), tmp_path / "export", to="webdataset")
    members = {}
    for number in range(3):
        with tarfile.open(out / f"shard-{number:05d}.tar") as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    assert len(members) == 3 * len(KEPT)
    for place, i in enumerate(KEPT):
        codes = np.load(io.BytesIO(members[f"{place:08d}.codes.npy"]))
        assert codes.dtype == np.uint16 and np.array_equal(codes, codes_of(i, 2))
        assert int(members[f"{place:08d}.cls"]) == i % 4 - 1
        assert json.loads(members[f"{place:08d}.json"]) == {"key": f"ö/{i}.jpg", "index": i}
    assert list(members)[:3] == ["00000000.codes.npy", "00000000.cls", "00000000.json"]  # side by side


def test_parquet_has_a_row_per_sample(make: MakeCache, tmp_path: Path) -> None:
    out = export_cache(make(), tmp_path / "export", to="parquet")
    tables = [pq.read_table(out / f"shard-{number:05d}.parquet") for number in range(3)]
    assert str(tables[0].schema.field("codes").type) == "fixed_size_list<element: uint16>[74]"
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == 2 * len(KEPT)
    for sample, row in enumerate(rows):
        i = KEPT[sample // 2]
        assert row["codes"] == codes_of(i, 2)[sample % 2].tolist()
        assert (row["key"], row["index"], row["label"]) == (f"ö/{i}.jpg", i, i % 4 - 1)
        assert row["variant"] == ("original", "mirrored")[sample % 2]


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_explains_itself(
    to: str, make: MakeCache, tokenizer: CodaTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make()
    out = export_cache(str(cache.path), tmp_path / "export", to)
    assert (out / "cache.json").read_bytes() == (cache.path / "manifest.json").read_bytes()
    values = load_file(out / "value_table.safetensors")["value_table"]
    assert np.array_equal(values, tokenizer.value_table().detach().numpy())
    page = (out / "README.md").read_text(encoding="utf-8")
    assert "9 images" in page and "original, mirrored" in page and tokenizer.fingerprint in page
    found = re.search("```python\n(.*?)```", page, re.DOTALL)
    assert found and "coda" not in found[1]
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(found[1], names)  # what it says about reading is true
    first = np.asarray(names["codes"][0])
    assert np.array_equal(first if to != "parquet" else names["codes"][:2], codes_of(0, 2))


@pytest.mark.parametrize("to", FORMATS)
def test_equal_caches_give_equal_bytes_and_nothing_is_left_beside_them(
    to: str, make: MakeCache, tmp_path: Path
) -> None:
    once, again = (export_cache(make(name), tmp_path / "out" / name, to) for name in ("a", "b"))
    assert content(once) == content(again)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def test_a_shard_of_which_nothing_could_be_read_is_an_empty_file(make: MakeCache, tmp_path: Path) -> None:
    cache = make()
    finished = ("images", "samples", "value_table", "shards", "skipped")
    head = {key: value for key, value in cache.manifest.items() if key not in finished}
    writer = CacheWriter(tmp_path / "gap", head, cache.value_table)
    for span in writer.remaining():
        kept = [] if span.start == SHARD else list(span)
        codes, places = torch.zeros(len(kept), 2, 74, dtype=torch.int64), torch.tensor(kept, dtype=torch.int64)
        skipped = [Skipped(str(i), "is empty", i) for i in span if i not in kept]
        writer.append(ShardRows(codes, torch.ones_like(places), places, list(map(str, kept))), skipped, span.stop)
    writer.finish()
    writer.close()
    assert pq.read_table(export_cache(writer.path, tmp_path / "a", "parquet") / "shard-00001.parquet").num_rows == 0
    with tarfile.open(export_cache(writer.path, tmp_path / "b", "webdataset") / "shard-00001.tar") as tar:
        assert tar.getnames() == []
    assert len(list((export_cache(writer.path, tmp_path / "c") / "imagenet16_codes").iterdir())) == ITEMS - SHARD


def test_what_is_there_is_not_replaced_unasked(make: MakeCache, tmp_path: Path) -> None:
    cache, other = make(), make("other", variants=("original",))
    out = export_cache(cache, tmp_path / "export")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert export_cache(cache, out) == out  # done already
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    for wrong in ({"cache": cache, "to": "parquet"}, {"cache": other}):
        with pytest.raises(CodaError, match=r"holds another export; choose another --out or give --overwrite"):
            export_cache(out=out, **wrong)
    export_cache(other, out, to="parquet", overwrite=True)
    assert content(out) == content(export_cache(other, tmp_path / "fresh", to="parquet"))

    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("…")
    for place, message in [
        (tmp_path / "letters", r"not an export of a code cache \(dear\.txt\)"),
        (cache.path, "not an export of a code cache"),
        (tmp_path / "letters" / "dear.txt", "is a file"),
    ]:
        with pytest.raises(CodaError, match=message):
            export_cache(cache, place, overwrite=True)
    with pytest.raises(CodaError, match="no format 'zip' to export to; there are npy, webdataset, parquet"):
        export_cache(cache, tmp_path / "out", to="zip")
    assert content(tmp_path / "letters") == {"dear.txt": "…".encode()}


@pytest.mark.parametrize("variants", [("original",), ("original", "mirrored"), TEN_CROP])
def test_what_was_exported_comes_back(
    variants: tuple[str, ...], make: MakeCache, tokenizer: CodaTokenizer, tmp_path: Path
) -> None:
    cache = make(variants=variants, class_names=["ant", "bee", "cat"])
    back = import_npy(export_cache(cache, tmp_path / "export"), tokenizer, tmp_path / "back", shard_size=5)
    everything = range(len(cache))
    assert len(back) == len(cache) and torch.equal(back.batch(everything)[0], cache.batch(everything)[0])
    assert torch.equal(back.labels, cache.labels) and torch.equal(back.value_table, cache.value_table)
    assert (back.layout, back.tokenizer_fingerprint) == (cache.layout, cache.tokenizer_fingerprint)
    assert tuple(back.manifest["variants"]) == variants and back.num_classes == 3
    assert back.manifest["preprocessing"]["crop"] == "unknown"
    assert back.manifest["preprocessing"]["size"] == list(tokenizer.size)
    assert [shard["images"] for shard in back.manifest["shards"]] == [5, 4]
    back.verify()


def test_a_saved_tokenizer_will_do_and_the_work_is_not_done_twice(
    make: MakeCache, tokenizer: CodaTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = export_cache(make(), tmp_path / "export")
    first = content(import_npy(folder, tmp_path / "tokenizer", tmp_path / "back").path)
    assert content(import_npy(str(folder), tokenizer, tmp_path / "back").path) == first
    np.save(folder / "imagenet16_codes" / "0.npy", np.zeros((1, 2, 74), dtype=np.int64))  # of another extraction
    with pytest.raises(CodaError, match=r"another code cache \(source\.fingerprint"):
        import_npy(folder, tokenizer, tmp_path / "back")
    assert import_npy(folder, tokenizer, tmp_path / "back", overwrite=True)[0][0].max() == 0


def write_pair(folder: Path, codes: list[Any], labels: list[Any]) -> Path:
    for kind, arrays in (("codes", codes), ("labels", labels)):
        (folder / f"some_{kind}").mkdir(parents=True)
        for i, array in enumerate(arrays):
            np.save(folder / f"some_{kind}" / f"{i}.npy", array)
    return folder


@pytest.mark.parametrize("kind", [np.uint16, np.int32, ">i8", np.uint64])
def test_arrays_may_have_fewer_dimensions_and_any_integers(kind: Any, tokenizer: CodaTokenizer, tmp_path: Path) -> None:
    expected = [codes_of(i, 1).numpy() for i in range(3)]
    shapes = [(1, 1, 74), (1, 74), (74,)]
    codes = [array.reshape(shape).astype(kind) for array, shape in zip(expected, shapes, strict=True)]
    folder = write_pair(tmp_path / "folder", codes, [np.array(2), np.array([-1]), np.int32(0)])
    (folder / "some_codes" / "notes.txt").write_text("not a number")
    cache = import_npy(folder, tokenizer, tmp_path / "cache")
    assert np.array_equal(cache.batch(range(3))[0], np.concatenate(expected))
    assert cache.labels.tolist() == [2, -1, 0] and cache.key(1) == "1.npy"
    assert (cache.num_classes, cache.class_names) == (3, None)  # bare numbers have no names


GOOD = np.zeros((1, 2, 74), dtype=np.int64)


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        ([GOOD, GOOD[..., :10]], [0, 0], r"some_codes/1\.npy holds 10 codes of an image; the tokenizer makes 74"),
        ([GOOD, GOOD + 300], [0, 0], r"1\.npy holds code 300, beyond a codebook of 300"),
        ([GOOD - 1], [0], r"0\.npy holds code -1"),
        ([GOOD, GOOD], [0], r"some_labels/1\.npy is missing; there are files up to 1\.npy"),
        ([GOOD], [0, 0], r"some_codes/1\.npy is missing"),
        ([], [], r"some_codes holds no codes"),
        ([np.zeros((1, 3, 74), dtype=int)], [0], r"holds 3 variants of an image; known are 1 \(original\), 2"),
        ([GOOD, GOOD[:, :1]], [0, 0], r"1\.npy holds 1 variants of an image, those before it 2"),
        ([np.zeros((2, 2, 74), dtype=int)], [0], r"integers of shape \(2, 2, 74\); codes have \(1, V, T\)"),
        ([np.zeros((0, 74), dtype=int)], [0], r"integers of shape \(0, 74\)"),
        ([GOOD.astype(float)], [0], r"0\.npy holds float64, not integers"),
        ([GOOD], [True], r"some_labels/0\.npy holds bool, not integers"),
        ([GOOD], [[1, 2]], r"integers of shape \(2,\); a label has"),
        ([GOOD], [-2], r"holds -2, which is not a label"),
        ([np.array([{}, None])], [0], r"0\.npy cannot be read as \.npy: Object arrays cannot be loaded"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_file(
    codes: list[Any], labels: list[Any], message: str, tokenizer: CodaTokenizer, tmp_path: Path
) -> None:
    folder = write_pair(tmp_path / "folder", codes, labels)
    with pytest.raises(CodaError, match=message) as refusal:
        import_npy(folder, tokenizer, tmp_path / "cache")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_gap_is_an_error_and_no_skip(tokenizer: CodaTokenizer, tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "folder", [GOOD] * 4, [0] * 4)
    for kind in ("codes", "labels"):
        (folder / f"some_{kind}" / "2.npy").unlink()
    with pytest.raises(CodaError, match=r"some_codes/2\.npy is missing; there are files up to 3\.npy"):
        import_npy(folder, tokenizer, tmp_path / "cache")


def test_a_file_that_is_no_array_is_named_whatever_is_in_it(tokenizer: CodaTokenizer, tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "folder", [GOOD, GOOD], [0, 0])
    file = folder / "some_codes" / "1.npy"
    whole = file.read_bytes()
    damaged = [b"", b"text", whole[:5], whole[:60], whole[:-1], whole.replace(b"descr", b"descx"), whole[:20] * 9]
    damaged += [whole.replace(b"(1, 2, 74)", b"(1, 2, 74 "), whole.replace(b"'<i8'", b"'\"8'")]
    for bad in damaged:
        file.write_bytes(bad)
        with pytest.raises(CodaError, match=r"some_codes/1\.npy cannot be read as \.npy: \S"):
            import_npy(folder, tokenizer, tmp_path / "cache", overwrite=True)


def test_exactly_one_pair_of_folders_is_asked_for(tokenizer: CodaTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(CodaError, match="no such folder"):
        import_npy(folder, tokenizer, tmp_path / "cache")
    (folder / "some_codes").mkdir(parents=True)
    with pytest.raises(CodaError, match="holds no pair of folders such as"):
        import_npy(folder, tokenizer, tmp_path / "cache")
    for name in ("some_labels", "other_codes", "other_labels"):
        (folder / name).mkdir()
    with pytest.raises(CodaError, match="holds 2 pairs of folders such as"):
        import_npy(folder, tokenizer, tmp_path / "cache")
    with pytest.raises(CodaError, match="shard size 0"):
        import_npy(folder, tokenizer, tmp_path / "cache", shard_size=0)
