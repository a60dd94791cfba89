"""An image through the tokenizer and back."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from coda.pipeline import reconstruct
from coda.tokenizer import CodaError


@pytest.fixture
def tokenizer(pipeline):
    return pipeline.tokenizer


def _image(height=40, width=60):
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def test_the_reconstruction_is_what_the_tokenizer_decodes(tokenizer):
    image = torch.rand(3, 16, 16) * 2 - 1
    result = reconstruct(tokenizer, image)
    codes = tokenizer.encode(image[None])
    assert torch.equal(result.codes, codes[0])
    pixels = np.asarray(result.reconstruction).astype(int)
    decoded = ((tokenizer.decode(codes)[0] + 1) * 127.5).round().movedim(0, -1).numpy()
    assert (pixels == decoded).all()
    original = ((image + 1) * 127.5).round().movedim(0, -1).numpy().astype(int)
    assert (np.asarray(result.original) == original).all()
    assert (np.asarray(result.difference) == np.minimum(4 * abs(original - pixels), 255)).all()
    error = ((original - pixels) ** 2).mean()
    assert result.psnr == pytest.approx(10 * math.log10(255**2 / error), abs=1e-6)


def test_levels_tokens_and_bits(tokenizer):
    result = reconstruct(tokenizer, _image())
    assert (result.tokens, result.bits, result.bits_per_pixel) == (85, 425, 425 / 256)
    coarse = reconstruct(tokenizer, _image(), levels=2)
    assert (coarse.tokens, coarse.bits, len(coarse.codes)) == (5, 25, 5)
    assert torch.equal(coarse.codes, result.codes[:5])
    assert coarse.reconstruction.tobytes() != result.reconstruction.tobytes()
    assert coarse.describe().endswith("5 tokens, 25 bits (0.0977 per pixel)")
    assert result.images == (result.original, result.reconstruction, result.difference)
    assert result.side_by_side().width > 3 * 256 and result.side_by_side().height > 256


def test_another_size_than_the_tokenizers(tokenizer):
    result = reconstruct(tokenizer, _image(), size=(24, 32))
    assert result.original.size == result.reconstruction.size == (32, 24)
    layout = tokenizer.layout_for(24, 32)
    assert (result.tokens, len(result.codes)) == (layout.num_tokens, layout.num_tokens)
    coarse = reconstruct(tokenizer, _image(), levels=2, size=(24, 32))
    assert coarse.tokens == layout.offsets[2] and torch.equal(coarse.codes, result.codes[: coarse.tokens])


def test_files_and_images_are_scaled_turned_and_cut_alike(tokenizer, tmp_path):
    image = _image()
    image.save(tmp_path / "photo.png")
    expected = reconstruct(tokenizer, image).original
    assert expected.size == (16, 16)
    assert reconstruct(tokenizer, tmp_path / "photo.png").original == expected
    assert reconstruct(tokenizer, str(tmp_path / "photo.png")).original == expected
    # Lying on its side, with a note that says so; as a camera writes it.
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = image.transpose(Image.Transpose.ROTATE_90)
    buffer = io.BytesIO()
    lying.save(buffer, "PNG", exif=exif)
    assert reconstruct(tokenizer, Image.open(buffer)).original == expected
    assert reconstruct(tokenizer, image.convert("CMYK")).original.size == (16, 16)


def test_wrong_arguments(tokenizer, tmp_path):
    (tmp_path / "text.jpg").write_text("words")
    for image, settings, says in (
        (tmp_path / "text.jpg", {}, r"text\.jpg is no"),
        (tmp_path / "nowhere.jpg", {}, r"nowhere\.jpg cannot be .*No such file"),
        (torch.zeros(3, 8, 8), {}, r"expected \(3, 16, 16\)"),
        (_image(), {"levels": 5}, "1 to 4"),
        (_image(), {"size": (25, 32)}, "multiples of"),
    ):
        with pytest.raises(CodaError, match=says):
            reconstruct(tokenizer, image, **settings)


def test_a_real_photo(tokenizer, shared_data):
    path = sorted((shared_data / "imagenet-sample-256").rglob("*.jpg"))[0]
    result = reconstruct(tokenizer, path)
    assert np.asarray(result.original).std() > 5 and 0 < result.psnr < 50
