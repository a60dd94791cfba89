from __future__ import annotations

import json
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from coda.tokenizer.code_cache import CacheWriter, CodeCache, ShardRows, merge_caches
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import Skipped
from coda.tokenizer.layout import CodeLayout

ITEMS, SHARD = 23, 5
BROKEN = {3: "is empty", 10: "cannot be decoded", 11: "is empty", 12: "is empty", 13: "is empty", 14: "is empty"}


def head(k: int = 300, variants: int = 1, part: tuple[int, int] | None = None, **other: Any) -> dict[str, Any]:
    known = {
        "format": "coda code cache",
        "format_version": 1,
        "tokenizer_fingerprint": "a" * 64,
        "layout": CodeLayout([1, (2, 3)], k).to_json(),
        "variants": ["original", "mirrored"][:variants],
        "preprocessing": {"size": [16, 16]},
        "source": {"items": ITEMS, "fingerprint": "b" * 64},
        "num_classes": 4,
        "class_names": None,
        "shard_size": SHARD,
        "part": part,
    }
    return known | other


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
    writer = CacheWriter(out, description, torch.arange(12.0).reshape(4, 3))
    assert work(writer, description)
    writer.finish()
    writer.close()
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    assert torch.equal(cache.value_table, torch.arange(12.0).reshape(4, 3))
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
    writer = CacheWriter(tmp_path / "cache", head(), torch.arange(12.0).reshape(4, 3))
    work(writer, head(), most=done)
    if done % 2:  # else only whole shards survive
        writer.save_pending()
    writer.close()
    with pytest.raises(CodaError, match="unfinished"):
        CodeCache(tmp_path / "cache")
    assert content(make(tmp_path / "cache")) == whole


def test_shards_that_are_damaged_or_lost_between_two_runs_are_made_again(tmp_path: Path) -> None:
    whole = content(make(tmp_path / "whole"))
    writer = CacheWriter(tmp_path / "cache", head(), torch.arange(12.0).reshape(4, 3))
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
    assert CacheWriter(tmp_path / "cache", head(), torch.zeros(4, 3)).complete
    assert content(tmp_path / "cache") == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_cache_is_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    if finished:
        make(tmp_path / "cache")
    else:
        CacheWriter(tmp_path / "cache", head(), torch.zeros(4, 3)).close()
    before = content(tmp_path / "cache")
    other = head(k=512, preprocessing={"size": [32, 32]}, tokenizer_fingerprint="c" * 64)
    with pytest.raises(CodaError) as refusal:
        CacheWriter(tmp_path / "cache", other, torch.zeros(4, 3))
    message = str(refusal.value)
    assert "tokenizer_fingerprint aaaaaaaaaaaaaaaa… there, cccccccccccccccc… here" in message
    assert "layout.codebook_size 300 there, 512 here" in message and "preprocessing.size [16, 16] there" in message
    assert content(tmp_path / "cache") == before
    writer = CacheWriter(tmp_path / "cache", other, torch.zeros(4, 3), overwrite=True)
    assert work(writer, other)
    assert CodeCache(writer.finish()).layout.codebook_size == 512


def test_what_is_no_cache_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("…")
    for overwrite in (False, True):
        with pytest.raises(CodaError, match=r"no code cache \(dear.txt\)"):
            CacheWriter(tmp_path / "letters", head(), torch.zeros(4, 3), overwrite)
    with pytest.raises(CodaError, match="is a file"):
        CacheWriter(tmp_path / "letters" / "dear.txt", head(), torch.zeros(4, 3))
    with pytest.raises(CodaError, match="is no code cache"):
        CodeCache(tmp_path / "letters")
    with pytest.raises(CodaError, match="does not exist"):
        CodeCache(tmp_path / "nothing")


def test_two_runs_at_once_do_not_write_into_one_folder(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", head(), torch.zeros(4, 3))
    with pytest.raises(CodaError, match="another process"):
        CacheWriter(tmp_path / "cache", head(), torch.zeros(4, 3))
    writer.close()
    CacheWriter(tmp_path / "cache", head(), torch.zeros(4, 3)).close()


def test_a_full_disk_is_an_operating_systems_error_and_costs_nothing_but_time(tmp_path: Path) -> None:
    whole = content(make(tmp_path / "whole"))
    writer = CacheWriter(tmp_path / "cache", head(), torch.arange(12.0).reshape(4, 3))
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


def test_files_are_as_readable_as_the_users_others(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    modes = {file.stat().st_mode for file in [tmp_path / "usual", *make(tmp_path / "cache").iterdir()]}
    assert len(modes) == 1


def test_a_source_without_one_readable_item_makes_no_cache(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", head(), torch.zeros(4, 3))
    for span in writer.remaining():
        nothing = ShardRows(torch.empty(0, 1, 7).long(), torch.empty(0).long(), torch.empty(0).long(), [])
        writer.append(nothing, [Skipped(f"{i}.jpg", "is empty", i) for i in span], span.stop)
    with pytest.raises(CodaError, match=r"none of 23 items can be read; the first, 0\.jpg, is empty"):
        writer.finish()


def damage_code(cache: Path) -> str:
    file = cache / "shard-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    return "shard-00001.safetensors has the wrong checksum"


def damage_values(cache: Path) -> str:
    file = cache / "value_table.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    return "value_table.safetensors is missing or has the wrong checksum"


def forget_skipped(cache: Path) -> str:
    manifest = json.loads((cache / "manifest.json").read_text())
    del manifest["skipped"][0]
    (cache / "manifest.json").write_text(json.dumps(manifest))
    return "items 0 to 4 are not all there exactly once"


@pytest.mark.parametrize("damage", [damage_code, damage_values, forget_skipped])
def test_verify_names_what_is_damaged(tmp_path: Path, damage: Any) -> None:
    message = damage(make(tmp_path / "cache"))
    with pytest.raises(CodaError, match=message):
        CodeCache(tmp_path / "cache").verify()


def test_verify_finds_an_item_left_out_twice(tmp_path: Path) -> None:
    manifest = make(tmp_path / "cache") / "manifest.json"
    found = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(found | {"skipped": found["skipped"] + found["skipped"][:1]}))
    with pytest.raises(CodaError, match="leaves an item out twice"):
        CodeCache(tmp_path / "cache").verify()


def test_verify_finds_codes_beyond_the_codebook(tmp_path: Path) -> None:
    description = head()
    writer = CacheWriter(tmp_path / "cache", description, torch.zeros(4, 3))
    rows = rows_of(range(2), 300, 1)
    rows.codes[1, 0, 3] = 300
    writer.append(rows, [], 2)
    work(writer, description)
    with pytest.raises(CodaError, match=r"shard-00000\.safetensors holds code 300"):
        CodeCache(writer.finish()).verify()


def test_a_missing_or_shortened_shard_shows_when_the_cache_is_opened(tmp_path: Path) -> None:
    file = make(tmp_path / "cache") / "shard-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CodaError, match=r"shard-00003\.safetensors is cut short"):
        CodeCache(tmp_path / "cache")
    file.unlink()
    with pytest.raises(CodaError, match=r"shard-00003\.safetensors is missing"):
        CodeCache(tmp_path / "cache")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "something"}', '{"format": "coda code cache"}'])
def test_a_damaged_or_foreign_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (make(tmp_path / "cache") / "manifest.json").write_text(text)
    with pytest.raises(CodaError, match=r"manifest\.json|format version"):
        CodeCache(tmp_path / "cache")


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
        ([one, whole], "out", "is no part of a cache"),
        ([one, two], "part-1", "choose another --out"),
        ([one, two], ".", "choose another --out"),
        ([one, two], "letters", "no code cache"),
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
        CacheWriter(tmp_path / "cache", head(part=(1, 6)), torch.zeros(4, 3))
