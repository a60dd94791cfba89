from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from coda.tokenizer.code_cache import CacheWriter, CodeCache, ShardRows, merge_caches
from coda.tokenizer.foundation.atomic_io import save_tensors, sha256_of
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import Skipped
from coda.tokenizer.layout import CodeLayout

from ..conftest import content
from .conftest import make_header

ITEMS, SHARD = 23, 5
BROKEN = {3: "is empty", 10: "cannot be decoded", 11: "is empty", 12: "is empty", 13: "is empty", 14: "is empty"}


def head(k: int = 300, variants: int = 1, **other: Any) -> dict[str, Any]:
    other = {"shard_size": SHARD, "variants": ["original", "mirrored"][:variants], **other}
    return make_header(CodeLayout([1, (2, 3)], k), ITEMS, **other)


def values(k: int = 300) -> torch.Tensor:
    return torch.arange(3.0 * k).reshape(k, 3)


def rows_of(items: range, k: int, variants: int) -> ShardRows:
    """The codes of an item are a function of its place, so a test knows what to expect."""
    here = [i for i in items if i not in BROKEN]
    codes = torch.stack([codes_of(i, k, variants) for i in here]) if here else torch.empty(0, variants, 7).long()
    return ShardRows(
        codes, torch.tensor([i % 5 - 1 for i in here]), torch.tensor(here).long(), [f"ö/{i}" for i in here]
    )


def codes_of(i: int, k: int, variants: int = 1) -> torch.Tensor:
    return torch.randint(k, (variants, 7), generator=torch.Generator().manual_seed(i))


def work(writer: CacheWriter, description: dict[str, Any], batch: int = 2, most: int | None = None) -> bool:
    """Append what is left, at most so many batches; True if nothing is left."""
    k, variants = description["layout"]["codebook_size"], len(description["variants"])
    for span in writer.remaining():
        for start in range(span.start, span.stop, batch):
            if most == 0:
                return False
            items = range(start, min(start + batch, span.stop))
            skipped = [Skipped(f"ö/{i}", BROKEN[i], i) for i in items if i in BROKEN]
            writer.append(rows_of(items, k, variants), skipped, items.stop)
            most = None if most is None else most - 1
    return True


def make(out: Path, **settings: Any) -> Path:
    description = head(**settings)
    writer = CacheWriter(out, description, values(description["layout"]["codebook_size"]))
    assert work(writer, description)
    writer.finish()
    writer.close()
    return out


@pytest.mark.parametrize(("k", "bytes_per_code"), [(256, 1), (300, 2), (65536, 2), (65537, 4)])
def test_what_is_written_reads_back_in_the_narrowest_type(tmp_path: Path, k: int, bytes_per_code: int) -> None:
    cache = CodeCache(make(tmp_path / "cache", k=k))
    kept = [i for i in range(ITEMS) if i not in BROKEN]
    assert len(cache) == len(kept) == cache.num_images
    for place, i in enumerate(kept):
        codes, label = cache[place]
        assert codes.dtype == torch.int64 and torch.equal(codes, codes_of(i, k)[0])
        assert (label, cache.key(place)) == (i % 5 - 1, f"ö/{i}")
    assert cache._shard(0).codes.dtype.itemsize == bytes_per_code
    assert cache.layout == CodeLayout([1, (2, 3)], k)
    assert torch.equal(cache.value_table, values(k))
    assert [(item["index"], item["reason"]) for item in cache.manifest["skipped"]] == list(BROKEN.items())
    cache.verify()


def test_batches_come_in_the_order_asked_for_across_shards(tmp_path: Path) -> None:
    cache = CodeCache(make(tmp_path / "cache"))
    order = torch.randperm(len(cache))
    codes, labels = cache.batch(order)
    assert torch.equal(codes, torch.stack([cache[int(i)][0] for i in order]))
    assert labels.tolist() == [cache[int(i)][1] for i in order]
    assert torch.equal(cache.batch([2, 2])[0], cache.batch(range(2, 3))[0].repeat(2, 1))
    with pytest.raises(IndexError):
        cache.batch([len(cache)])
    assert torch.equal(cache[-1][0], cache[len(cache) - 1][0])
    assert len(list(cache)) == len(cache)


def test_variants_count_as_samples_of_one_image(tmp_path: Path) -> None:
    cache = CodeCache(make(tmp_path / "cache", variants=2))
    assert len(cache) == 2 * cache.num_images
    for sample in range(6):
        assert torch.equal(cache[sample][0], codes_of(sample // 2, 300, 2)[sample % 2])
        assert cache.key(sample) == f"ö/{sample // 2}"
    assert torch.equal(cache.batch([5, 0])[0], torch.stack([cache[5][0], cache[0][0]]))
    assert cache.labels.tolist()[:4] == [-1, -1, 0, 0]


def test_a_cache_travels_to_other_processes_without_its_maps(tmp_path: Path) -> None:
    cache = CodeCache(make(tmp_path / "cache"))
    assert torch.equal(cache[4][0], pickle.loads(pickle.dumps(cache))[4][0])


@pytest.mark.parametrize("done", range(13))
def test_a_run_taken_up_after_any_batch_ends_with_the_same_bytes(tmp_path: Path, done: int) -> None:
    whole = content(make(tmp_path / "whole"))
    writer = CacheWriter(tmp_path / "cache", head(), values())
    work(writer, head(), most=done)
    if done % 2:  # else only whole shards survive
        writer.save_pending()
    writer.close()
    with pytest.raises(CodaError, match="unfinished"):
        CodeCache(tmp_path / "cache")
    assert content(make(tmp_path / "cache")) == whole


def test_shards_that_are_damaged_or_lost_between_two_runs_are_made_again(tmp_path: Path) -> None:
    whole = content(make(tmp_path / "whole"))
    writer = CacheWriter(tmp_path / "cache", head(), values())
    work(writer, head(), most=7)
    writer.save_pending()
    writer.close()
    (tmp_path / "cache" / "shard-00000.safetensors").unlink()
    damaged = tmp_path / "cache" / "shard-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    (tmp_path / "cache" / ".shard-00002.safetensors.partial").write_bytes(b"half")
    (tmp_path / "cache" / ".tmp4Xy9z1").write_bytes(b"half")  # as safetensors names it
    pending = tmp_path / "cache" / "pending-shard-00002.safetensors"
    pending.write_bytes(pending.read_bytes()[:-9])
    assert content(make(tmp_path / "cache")) == whole


def test_a_finished_cache_is_not_made_twice(tmp_path: Path) -> None:
    before = content(make(tmp_path / "cache"))
    (tmp_path / "cache" / "progress.json").write_text("{}")  # killed just after the manifest was written
    assert CacheWriter(tmp_path / "cache", head(), values()).complete
    assert content(tmp_path / "cache") == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_cache_is_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    if finished:
        make(tmp_path / "cache")
    else:
        CacheWriter(tmp_path / "cache", head(), values()).close()
    before = content(tmp_path / "cache")
    other = head(k=512, preprocessing={"size": [32, 32]}, tokenizer_fingerprint="c" * 64)
    with pytest.raises(CodaError) as refusal:
        CacheWriter(tmp_path / "cache", other, values())
    message = str(refusal.value)
    assert "tokenizer_fingerprint aaaaaaaaaaaaaaaa… there, cccccccccccccccc… here" in message
    assert "layout.codebook_size 300 there, 512 here" in message and "preprocessing.size [16, 16] there" in message
    assert content(tmp_path / "cache") == before
    writer = CacheWriter(tmp_path / "cache", other, values(), overwrite=True)
    assert work(writer, other)
    assert CodeCache(writer.finish()).layout.codebook_size == 512


def test_what_is_no_cache_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("…")
    for overwrite in (False, True):
        with pytest.raises(CodaError, match=r"not a code cache \(dear.txt\)"):
            CacheWriter(tmp_path / "letters", head(), values(), overwrite)
    with pytest.raises(CodaError, match="is a file"):
        CacheWriter(tmp_path / "letters" / "dear.txt", head(), values())
    with pytest.raises(CodaError, match="is not a code cache"):
        CodeCache(tmp_path / "letters")
    with pytest.raises(CodaError, match="does not exist"):
        CodeCache(tmp_path / "nothing")


def test_two_runs_at_once_do_not_write_into_one_folder(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", head(), values())
    with pytest.raises(CodaError, match="another process"):
        CacheWriter(tmp_path / "cache", head(), values())
    writer.close()
    CacheWriter(tmp_path / "cache", head(), values()).close()


def test_a_full_disk_is_an_operating_systems_error_and_costs_nothing_but_time(tmp_path: Path) -> None:
    whole = content(make(tmp_path / "whole"))
    writer = CacheWriter(tmp_path / "cache", head(), values())
    work(writer, head(), most=5)
    before, limits = content(tmp_path / "cache"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # larger files cannot be written
    try:
        with pytest.raises(OSError, match=r"cannot be written|too large"):
            work(writer, head())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path / "cache") == before
    writer.close()
    assert content(make(tmp_path / "cache")) == whole


def test_a_source_without_one_readable_item_makes_no_cache(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", head(), values())
    for span in writer.remaining():
        nothing = ShardRows(torch.empty(0, 1, 7).long(), torch.empty(0).long(), torch.empty(0).long(), [])
        writer.append(nothing, [Skipped(f"{i}.jpg", "is empty", i) for i in span], span.stop)
    with pytest.raises(CodaError, match=r"none of 23 items can be read; the first, 0\.jpg, is empty"):
        writer.finish()


def rewrite(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def reseal(cache: Path) -> None:
    """Make the manifest say what the files are now, as somebody would who wants them believed."""
    manifest = json.loads((cache / "manifest.json").read_text())
    for entry in [*manifest["shards"], manifest["value_table"]]:
        entry["sha256"] = sha256_of(cache / entry["file"])
    rewrite(cache / "manifest.json", **manifest)


def change_shard(cache: Path, **arrays: Any) -> None:
    """Replace arrays of the first shard, of four images, by others of equal size in bytes."""
    file = cache / "shard-00000.safetensors"
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    found = load_file(file)
    save_file(found | {name: np.asarray(array, found[name].dtype) for name, array in arrays.items()}, file, metadata)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (
        lambda cache: flip_byte(cache / "shard-00001.safetensors"),
        r"shard-00001\.safetensors has the wrong checksum",
    ),
    "a changed value": (
        lambda cache: flip_byte(cache / "value_table.safetensors"),
        r"value_table\.safetensors is missing or has the wrong checksum",
    ),
    "a code beyond the codebook": (
        lambda cache: (change_shard(cache, codes=np.full((4, 1, 7), 300)), reseal(cache)),
        r"shard-00000\.safetensors holds code 300",
    ),
    "a label beyond the classes": (
        lambda cache: (change_shard(cache, labels=[0, 1, 4, 0]), reseal(cache)),
        r"shard-00000\.safetensors holds labels from 0 to 4",
    ),
    "a label below -1": (
        lambda cache: (change_shard(cache, labels=[0, 1, -2, 0]), reseal(cache)),
        r"shard-00000\.safetensors holds labels from -2",
    ),
    "an item that is there twice": (
        lambda cache: (change_shard(cache, indices=[0, 1, 1, 4]), reseal(cache)),
        "items 0 to 4 are not all there exactly once",
    ),
    "key offsets beyond the keys": (
        lambda cache: (change_shard(cache, key_offsets=[0, 4, 2, 10**9, -1]), reseal(cache)),
        r"shard-00000\.safetensors holds names of items that cannot be read",
    ),
    "values that are not numbers": (
        lambda cache: (save_tensors(cache / "value_table.safetensors", {"value_table": values() / 0}), reseal(cache)),
        "NaN or infinite",
    ),
    "values for fewer codes": (
        lambda cache: (save_tensors(cache / "value_table.safetensors", {"value_table": values(299)}), reseal(cache)),
        r"shape \(299, 3\)",
    ),
    "values of other channels": (
        lambda cache: rewrite(cache / "manifest.json", tokenizer={"latent_channels": 4}),
        "values of 3 channels, not 4",
    ),
    "an item left out that is not said to be": (
        lambda cache: rewrite(cache / "manifest.json", skipped=manifest_of(cache)["skipped"][1:]),
        "items 0 to 4 are not all there exactly once",
    ),
    "an item left out twice": (
        lambda cache: rewrite(cache / "manifest.json", skipped=manifest_of(cache)["skipped"][:1] * 2),
        "leaves an item out twice",
    ),
    "a shard that is not there": (
        lambda cache: rewrite(
            cache / "manifest.json", shards=manifest_of(cache)["shards"][:-1], images=ITEMS - len(BROKEN) - 3
        ),
        "there are 4 shards",
    ),
}


def manifest_of(cache: Path) -> dict[str, Any]:
    return json.loads((cache / "manifest.json").read_text())


def flip_byte(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[-20] ^= 1
    file.write_bytes(whole)


@pytest.mark.parametrize("what", DAMAGES)
def test_verify_names_what_is_damaged(tmp_path: Path, what: str) -> None:
    damage, message = DAMAGES[what]
    damage(make(tmp_path / "cache"))
    with pytest.raises(CodaError, match=message) as error:
        CodeCache(tmp_path / "cache").verify()
    assert "\n" not in str(error.value)


def test_reading_a_cache_with_impossible_codes_or_labels_names_the_file(tmp_path: Path) -> None:
    change_shard(make(tmp_path / "codes"), codes=np.full((4, 1, 7), 300))
    change_shard(make(tmp_path / "labels"), labels=[0, 1, 4, 0])
    for read in (lambda cache: cache[2], lambda cache: cache.batch([2])):
        with pytest.raises(CodaError, match=r"codes.* holds code 300"):
            read(CodeCache(tmp_path / "codes"))
        with pytest.raises(CodaError, match=r"shard-00000\.safetensors holds labels"):
            read(CodeCache(tmp_path / "labels"))


def test_a_missing_or_shortened_shard_shows_when_the_cache_is_opened(tmp_path: Path) -> None:
    file = make(tmp_path / "cache") / "shard-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CodaError, match=r"shard-00003\.safetensors is cut short"):
        CodeCache(tmp_path / "cache")
    file.unlink()
    with pytest.raises(CodaError, match=r"shard-00003\.safetensors is missing"):
        CodeCache(tmp_path / "cache")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 10**5, '{"format": "something"}', '{"format": "coda code cache"}']
)
def test_a_damaged_or_foreign_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (make(tmp_path / "cache") / "manifest.json").write_text(text)
    with pytest.raises(CodaError, match=r"manifest\.json|format version"):
        CodeCache(tmp_path / "cache")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 10**12},
        {"num_classes": -1},
        {"class_names": [1, 2, 3, 4]},
        {"class_names": ["ant"]},
        {"images": 10**6},
        {"variants": []},
        {"layout": {"sides": [[1, "2"]], "codebook_size": None}},
        {"tokenizer_fingerprint": None},
        {"shards": [{"file": "shard-00000.safetensors"}]},
        {"shards": "all"},
        {"skipped": [{"index": 0}]},
        {"value_table": {}},
        {"part": [2, 1]},
        {"source": {"items": "all"}},
        {"shard_size": 0},
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    rewrite(make(tmp_path / "cache") / "manifest.json", **changes)
    with pytest.raises(CodaError, match=f"damaged manifest: {next(iter(changes))} is missing or wrong"):
        CodeCache(tmp_path / "cache")


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "sub/shard", "..", ".hidden", "", 7, None, "a\0b", "..\\x"]
)
def test_a_file_name_that_leads_out_of_the_cache_is_refused(tmp_path: Path, name: Any) -> None:
    parts = [make(tmp_path / f"part-{i}", part=[i, 2]) for i in (1, 2)]
    manifest = manifest_of(parts[0])
    outside = tmp_path / "outside"
    outside.write_bytes((parts[0] / "shard-00000.safetensors").read_bytes())
    manifest["shards"][0]["file"] = name
    for changes in ({"shards": manifest["shards"]}, {"value_table": {**manifest["value_table"], "file": name}}):
        rewrite(parts[0] / "manifest.json", **changes)
        with pytest.raises(CodaError, match="only plain names"):
            merge_caches(parts, tmp_path / "merged")
        rewrite(parts[0] / "manifest.json", **manifest_of(make(tmp_path / "sound", part=[1, 2])))
    (parts[0] / "manifest.json").unlink()
    shard = {**manifest["shards"][0], "skipped": []}
    (parts[0] / "progress.json").write_text(json.dumps({"head": head(part=[1, 2]), "shards": {"0": shard}}))
    with pytest.raises(CodaError, match="only plain names"):
        CacheWriter(parts[0], head(part=[1, 2]), values())
    assert outside.exists() and not (tmp_path / "merged").exists()


def test_many_shards_need_no_open_files(tmp_path: Path) -> None:
    cache = CodeCache(make(tmp_path / "cache", shard_size=1))
    opened = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    codes, _ = cache.batch(range(len(cache)))
    assert len(codes) == len(cache) and len(cache.manifest["shards"]) == ITEMS
    if opened:
        assert len(os.listdir("/proc/self/fd")) == opened


def test_merged_parts_are_the_bytes_of_an_undivided_run(tmp_path: Path) -> None:
    whole = content(make(tmp_path / "whole"))
    parts = [make(tmp_path / f"part-{i}", part=(i, 3)) for i in (1, 2, 3)]
    merged = merge_caches([parts[2], parts[0], parts[1]], tmp_path / "merged")
    assert content(merged.path) == whole
    with pytest.raises(CodaError, match="exists already"):
        merge_caches(parts, tmp_path / "merged")
    assert content(merge_caches(parts, tmp_path / "merged", overwrite=True).path) == whole


def test_parts_that_do_not_make_a_whole_are_refused(tmp_path: Path) -> None:
    one, two = (make(tmp_path / f"part-{i}", part=(i, 2)) for i in (1, 2))
    other = make(tmp_path / "other", part=(2, 2), tokenizer_fingerprint="c" * 64)
    third = make(tmp_path / "third", part=(3, 3))
    whole = make(tmp_path / "whole")
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "dear.txt").write_text("…")
    for parts, out, message in [
        ([], "out", "no parts"),
        ([one], "out", "part 2 of 2 is missing"),
        ([one, one], "out", "are both part 1/2"),
        ([one, other], "out", "tokenizer_fingerprint"),
        ([one, third], "out", "number of parts 2 there, 3 here"),
        ([one, whole], "out", "is not a part of a cache"),
        ([one, two], "part-1", "choose another --out"),
        ([one, two], ".", "choose another --out"),
        ([one, two], "letters", "is not a code cache"),
    ]:
        with pytest.raises(CodaError, match=message):
            merge_caches(parts, tmp_path / out, overwrite=True)
    assert [path.name for path in letters.iterdir()] == ["dear.txt"]
    file = two / "shard-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(CodaError, match="checksum"):
        merge_caches([one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_parts_than_shards_is_an_error_that_names_a_shard_size(tmp_path: Path) -> None:
    with pytest.raises(CodaError, match=r"part 1/6 is empty: 23 images make 5 shards of 5; .* 3 or less"):
        CacheWriter(tmp_path / "cache", head(part=(1, 6)), values())
