from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coda.tokenizer import CodaTokenizer, CodeCache, ResidualQuantizer, merge_caches
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import decode_image, open_images, to_unit
from coda.tokenizer.vae.continuous_vae import ContinuousVAE

from .conftest import content, tokenize

COUNT, BAD = 26, (4, 12, 13, 14, 15)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """26 images in two classes, five of them broken."""
    noise = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for i in range(COUNT):
        path = folder / ("ant" if i < 10 else "bee") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(256, size=(20, 16, 3), dtype=np.uint8)).save(path)
        if i in BAD:
            path.write_bytes(path.read_bytes()[: 50 * (i % 2)])
    return folder


def test_the_cache_holds_the_codes_of_every_readable_image(
    tokenizer: CodaTokenizer, photos: Path, tmp_path: Path
) -> None:
    summary = tokenize(tokenizer, photos, tmp_path / "cache", batch_size=4, shard_size=8)
    assert summary.num_classes == 2
    cache, source = CodeCache(summary.path), open_images(photos)
    kept = [i for i in range(COUNT) if i not in BAD]
    assert len(cache) == summary.images == summary.encoded == len(kept)
    images = torch.stack([to_unit(decode_image(source.read(i), 16)) for i in kept])
    expected = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert (cache.batch(range(len(cache)))[0] == expected).float().mean() > 0.999  # batches round otherwise
    assert cache.labels.tolist() == [0 if i < 10 else 1 for i in kept]
    assert [cache.key(i) for i in range(len(cache))] == [source.key(i) for i in kept]
    assert [item.index for item in summary.skipped] == list(BAD)
    assert summary.skipped[0].key == "ant/04.png" and summary.skipped[0].reason == "is empty"
    assert torch.equal(cache.value_table, tokenizer.value_table())
    cache.verify()


def test_the_manifest_says_all_that_a_generator_and_a_reader_need(
    tokenizer: CodaTokenizer, photos: Path, tmp_path: Path
) -> None:
    manifest = CodeCache(tokenize(tokenizer, photos, tmp_path / "cache").path).manifest
    assert manifest["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert manifest["layout"] == tokenizer.layout.to_json() and manifest["codes"] == "uint16"
    assert manifest["tokenizer"]["shift"] == [0.1] and manifest["tokenizer"]["scale"] == [0.4]
    assert manifest["preprocessing"]["size"] == [16, 16] and manifest["preprocessing"]["precision"] == "float32"
    assert (manifest["class_names"], manifest["num_classes"]) == (["ant", "bee"], 2)
    assert manifest["source"]["fingerprint"] == open_images(photos).fingerprint
    assert manifest["images"] + len(manifest["skipped"]) == manifest["source"]["items"] == COUNT


def test_mirrored_variants_are_encoded_from_mirrored_pixels(
    tokenizer: CodaTokenizer, photos: Path, tmp_path: Path
) -> None:
    both = CodeCache(tokenize(tokenizer, photos, tmp_path / "both", flip=True, batch_size=5).path)
    plain = CodeCache(tokenize(tokenizer, photos, tmp_path / "plain", batch_size=5).path)
    for file in photos.glob("*/*.png"):
        if file.stat().st_size > 60:
            Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    mirrored = CodeCache(tokenize(tokenizer, photos, tmp_path / "mirrored", batch_size=5).path)
    assert len(both) == 2 * len(plain)
    assert torch.equal(both.batch(range(0, len(both), 2))[0], plain.batch(range(len(plain)))[0])
    assert torch.equal(both.batch(range(1, len(both), 2))[0], mirrored.batch(range(len(plain)))[0])
    assert both.manifest["variants"] == ["original", "mirrored"]


@pytest.mark.parametrize("changes", [{"workers": 2}, {"device": "cpu"}, {"dtype": "float32"}])
def test_what_only_changes_the_speed_changes_no_byte(
    tokenizer: CodaTokenizer, photos: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {"batch_size": 4, "shard_size": 6}
    one = tokenize(tokenizer, photos, tmp_path / "one", **settings)
    two = tokenize(tokenizer, photos, tmp_path / "two", **settings, **changes)
    assert content(one.path) == content(two.path)


def test_bfloat16_is_another_cache(tokenizer: CodaTokenizer, photos: Path, tmp_path: Path) -> None:
    tokenize(tokenizer, photos, tmp_path / "cache", dtype="bfloat16")
    assert CodeCache(tmp_path / "cache").manifest["preprocessing"]["precision"] == "bfloat16"
    with pytest.raises(CodaError, match=r"preprocessing\.precision bfloat16 there, float32 here"):
        tokenize(tokenizer, photos, tmp_path / "cache", dtype="float32")


def test_latents_that_are_not_finite_make_no_codes(tokenizer: CodaTokenizer, photos: Path, tmp_path: Path) -> None:
    tokenizer.vae.register_to_config(scale=[1e39])
    with pytest.raises(CodaError, match=r"the latents of ant/00\.png are NaN or infinite"):
        tokenize(tokenizer, photos, tmp_path / "cache")


@pytest.mark.parametrize("count", [3, 9])  # of nine, one has no readable image
def test_parts_joined_are_the_bytes_of_one_run(
    tokenizer: CodaTokenizer, photos: Path, tmp_path: Path, count: int
) -> None:
    settings = {"batch_size": 2, "shard_size": 3}
    whole = tokenize(tokenizer, photos, tmp_path / "whole", **settings)
    parts = [tmp_path / f"part-{i}" for i in range(1, count + 1)]
    for i, part in enumerate(parts, 1):
        tokenize(tokenizer, photos, part, part=f"{i}/{count}", **settings)
    assert content(merge_caches(parts, tmp_path / "merged").path) == content(whole.path)


def test_strict_and_max_skipped_stop_and_what_was_done_counts(
    tokenizer: CodaTokenizer, photos: Path, tmp_path: Path
) -> None:
    settings = {"batch_size": 3, "shard_size": 100}
    whole = tokenize(tokenizer, photos, tmp_path / "whole", **settings)
    with pytest.raises(CodaError, match=r"^ant/04\.png in .* is empty$"):
        tokenize(tokenizer, photos, tmp_path / "cache", strict=True, **settings)
    with pytest.raises(CodaError, match=r"^bee/14\.png in .* is empty; 3 others were left out already"):
        tokenize(tokenizer, photos, tmp_path / "cache", max_skipped=3, **settings)
    with pytest.raises(CodaError, match=r"^ant/04\.png in .* is empty$"):  # left out by the run before
        tokenize(tokenizer, photos, tmp_path / "cache", strict=True, **settings)
    rest = tokenize(tokenizer, photos, tmp_path / "cache", max_skipped=len(BAD), **settings)
    assert content(rest.path) == content(whole.path)
    assert rest.encoded < whole.encoded == rest.images


def test_a_finished_run_given_again_does_nothing(tokenizer: CodaTokenizer, photos: Path, tmp_path: Path) -> None:
    first = tokenize(tokenizer, photos, tmp_path / "cache")
    before = content(first.path)
    again = tokenize(tokenizer, photos, tmp_path / "cache")
    assert (again.encoded, again.images, again.skipped) == (0, first.images, first.skipped)
    assert content(first.path) == before
    again = tokenize(tokenizer, photos, tmp_path / "cache", overwrite=True)
    assert again.encoded == first.encoded and content(again.path) == before


def test_another_tokenizer_or_data_set_is_refused_with_what_differs(
    tokenizer: CodaTokenizer, small_vae: ContinuousVAE, photos: Path, tmp_path: Path
) -> None:
    tokenize(tokenizer, photos, tmp_path / "cache")
    torch.manual_seed(9)
    other = CodaTokenizer(small_vae, ResidualQuantizer(4, 300, [1, 3, 8]))
    with pytest.raises(CodaError, match=r"tokenizer_fingerprint .* there, .* here"):
        tokenize(other, photos, tmp_path / "cache")
    with pytest.raises(CodaError, match=r"source\.items 26 there, 20 here"):
        tokenize(tokenizer, f"{photos}[:20]", tmp_path / "cache")
    with pytest.raises(CodaError, match="variants"):
        tokenize(tokenizer, photos, tmp_path / "cache", flip=True)
    with pytest.raises(CodaError, match="part null there"):
        tokenize(tokenizer, photos, tmp_path / "cache", part="1/1")
    file = photos / "ant" / "00.png"  # replaced by an image of the same size in bytes
    os.utime(file, ns=(0, 0))
    with pytest.raises(CodaError, match=r"source\.fingerprint"):
        tokenize(tokenizer, photos, tmp_path / "cache")
    shutil.rmtree(photos / "ant")
    with pytest.raises(CodaError, match=r"source\.fingerprint"):
        tokenize(tokenizer, photos, tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 32}, "size 32 does not fit the tokenizer, which takes images of 16x16"),
        ({"data": "/nothing/here"}, "does not exist"),
        ({"tokenizer": "/nothing/here"}, "/nothing/here"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "int4"}, "int4"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tokenizer: CodaTokenizer, photos: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CodaError, match=message):
        tokenize(**{"tokenizer": tokenizer, "data": photos, "out": tmp_path / "cache"} | changes)
    assert not (tmp_path / "cache").exists()


def test_nothing_but_broken_items_makes_no_cache(tokenizer: CodaTokenizer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(CodaError, match=r"none of 3 items can be read; the first, 0\.jpg, is empty"):
        tokenize(tokenizer, tmp_path / "photos", tmp_path / "cache")
    with pytest.raises(CodaError, match="unfinished"):
        CodeCache(tmp_path / "cache")
    part = tokenize(tokenizer, tmp_path / "photos", tmp_path / "part", part="1/1")
    assert (part.images, len(part.skipped)) == (0, 3)
    with pytest.raises(CodaError, match="none of 3 items can be read"):
        merge_caches([part.path], tmp_path / "merged")


def test_real_photos_go_through_from_every_kind_of_source(
    small_vae: ContinuousVAE, shared_data: Path, tmp_path: Path
) -> None:
    tokenizer = CodaTokenizer(small_vae, ResidualQuantizer(4, 300, [1, 4, 32])).eval()  # 64 × 64 pixels
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    table, archive, folder = (
        tokenize(tmp_path / "tokenizer", f"{shared_data}/{data}", tmp_path / name, batch_size=8)
        for name, data in [
            ("table", "tiny-imagenet/train-00000.parquet[:16]"),
            ("archive", "tiny-imagenet/webdataset-00000.tar[:16]"),
            ("folder", "imagenet-sample-256[-16:]"),
        ]
    )
    one, two = CodeCache(table.path), CodeCache(archive.path)
    assert torch.equal(one.batch(range(16))[0], two.batch(range(16))[0]) and torch.equal(one.labels, two.labels)
    assert folder.images == 16 and CodeCache(folder.path).num_classes == 1000
