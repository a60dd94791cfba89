from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coda.tokenizer import CodaError, CodaTokenizer, CodeCache, ResidualQuantizer
from coda.tokenizer.code_cache.format import TEN_CROP, VARIANTS
from coda.tokenizer.code_cache.variants import each_variant, size_for, variant_names
from coda.tokenizer.images import decode_image, to_unit
from coda.tokenizer.vae.continuous_vae import ContinuousVAE

from ..conftest import tokenize


@pytest.fixture
def tokenizer(small_vae: ContinuousVAE) -> CodaTokenizer:
    """40 × 40 pixels."""
    return CodaTokenizer(small_vae, ResidualQuantizer(4, 300, [1, 5, 20])).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, each larger than its codes' size."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(noise.integers(256, size=(50, 60, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("size", [(40, 40), (256, 256), (24, 36)])
def test_ten_crops_are_those_of_torchvision(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    images = torch.rand(2, 3, *size_for(TEN_CROP, size))
    ours = list(each_variant(images, TEN_CROP, size))
    theirs = transforms.TenCrop(size)(images)
    assert len(ours) == len(theirs) == 10
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_llamagen_crops_out_of_a_picture_a_tenth_larger() -> None:
    assert size_for(TEN_CROP, (256, 256)) == (281, 281)  # int(256 · 1.1)
    assert size_for(VARIANTS, (256, 256)) == (256, 256)


def test_ten_crops_are_encoded_from_the_cropped_pixels(tokenizer: CodaTokenizer, photos: Path, tmp_path: Path) -> None:
    cache = CodeCache(tokenize(tokenizer, photos, tmp_path / "cache", ten_crop=True, batch_size=2).path)
    assert cache.manifest["variants"] == list(TEN_CROP) and len(cache) == 30 and cache.num_images == 3
    assert cache.manifest["preprocessing"]["crop"] == "ten of a center crop of 44x44"
    assert cache.manifest["preprocessing"]["size"] == [40, 40]
    for number, file in enumerate(sorted(photos.iterdir())):
        larger = to_unit(decode_image(file.read_bytes(), 44))
        bottom_right = larger[:, 4:, 4:]
        middle_of_mirrored = larger.flip(-1)[:, 2:42, 2:42]
        for variant, pixels in ((3, bottom_right), (9, middle_of_mirrored)):
            assert torch.equal(cache[10 * number + variant][0], tokenizer.encode(pixels[None])[0])


def test_mirrored_and_ten_crops_exclude_each_other(tokenizer: CodaTokenizer, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="half of the ten crops are mirrored already"):
        tokenize(tokenizer, photos, tmp_path / "cache", flip=True, ten_crop=True)
    assert not (tmp_path / "cache").exists()
    assert variant_names(flip=False, ten_crop=False) == ("original",)
