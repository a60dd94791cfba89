"""A tokenizer on images of other sizes than it was adapted on, and on large images in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coda.tokenizer import CodaError, CodaTokenizer, CodeLayout, ResidualQuantizer
from coda.tokenizer.vae.continuous_vae import ContinuousVAE
from coda.tokenizer.vae.tiling import in_tiles


@pytest.fixture
def tokenizer(small_vae: ContinuousVAE) -> CodaTokenizer:
    """For images of 32 × 32 pixels; factor 2."""
    return CodaTokenizer(small_vae, ResidualQuantizer(4, 32, (1, 2, 4, 8, 16), attention_dim=8, norm="rms_norm")).eval()


@given(st.integers(1, 130), st.integers(1, 130))
def test_sides_grow_to_any_grid_in_as_many_levels(height: int, width: int) -> None:
    layout = CodeLayout((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 64).scaled((height, width))
    assert layout.grid == (height, width) and layout.num_levels == 10 and layout.codebook_size == 64
    heights, widths = zip(*layout.sides, strict=True)
    assert list(heights) == sorted(heights) and list(widths) == sorted(widths)
    layout = CodeLayout((1, 2, (3, 4), (4, 6)), 64)
    assert layout.scaled((4, 6)) == layout and layout.scaled((8, 12)).sides == ((2, 2), (4, 4), (6, 8), (8, 12))


def test_every_size_that_the_factor_divides_comes_back(small_autoencoder: Callable[..., Any]) -> None:
    vae = ContinuousVAE(small_autoencoder("AutoencoderTiny"), [0.0], [1.0]).requires_grad_(False).eval()
    tokenizer = CodaTokenizer(vae, ResidualQuantizer(vae.latent_channels, 16, (1, 2, 3, 4))).eval()
    sizes = range(vae.factor * math.ceil(8 / vae.factor), 265, vae.factor)
    for height in sizes:
        for width in {sizes[0], height, sizes[-1]}:
            images = torch.zeros(1, 3, height, width)
            codes, layout = tokenizer.encode(images), tokenizer.layout_for(height, width)
            assert codes.shape == (1, layout.num_tokens), (height, width)
            assert tokenizer.decode(codes, 2, layout).shape == tokenizer(images).shape == images.shape


def test_another_size_is_decoded_as_it_was_quantized(tokenizer: CodaTokenizer) -> None:
    # The reference is a quantizer of the same weights made for that size.
    images = torch.rand(2, 3, 48, 20) * 2 - 1
    sides = tokenizer.layout_for(48, 20).sides
    made_for_it = ResidualQuantizer(4, 32, sides, attention_dim=8, norm="rms_norm")
    made_for_it.load_state_dict(tokenizer.quantizer.state_dict())
    with torch.no_grad():
        output = made_for_it(tokenizer.vae.encode(images))
    codes = tokenizer.encode(images)
    assert torch.equal(codes, output.codes)
    expected = tokenizer.vae.decode(output.quantized).clamp(-1, 1)
    torch.testing.assert_close(tokenizer(images), expected, rtol=0, atol=1e-5)


def test_encode_and_decode_compile_into_one_graph_each(small_vae: ContinuousVAE, images: torch.Tensor) -> None:
    tokenizer = CodaTokenizer(small_vae, ResidualQuantizer(4, 32, (1, 16), attention_dim=8, norm="rms_norm")).eval()
    codes = torch.compile(tokenizer.encode, fullgraph=True, backend="aot_eager")(images)
    assert torch.equal(codes, tokenizer.encode(images))
    decoded = torch.compile(tokenizer.decode, fullgraph=True, backend="aot_eager")(codes)
    torch.testing.assert_close(decoded, tokenizer.decode(codes))


def test_codes_of_another_size_need_their_layout_and_a_size_that_the_factor_divides(tokenizer: CodaTokenizer) -> None:
    codes = tokenizer.encode(torch.rand(3, 3, 48, 20) * 2 - 1)
    with pytest.raises(CodaError, match="codes have shape"):
        tokenizer.decode(codes)
    assert tokenizer.decode(codes, layout=tokenizer.layout_for(48, 20)).shape == (3, 3, 48, 20)
    with pytest.raises(CodaError, match="33x32; this VAE takes multiples of 2"):
        tokenizer.encode(torch.zeros(1, 3, 33, 32))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 16), st.integers(0, 7), st.sampled_from([1, 2]))
def test_tiles_of_a_local_function_join_without_a_seam(h: int, w: int, tile: int, overlap: int, scale: int) -> None:
    inputs = torch.randn(2, 3, h, w, dtype=torch.float64)

    def work(x: torch.Tensor) -> torch.Tensor:
        assert max(x.shape[-2:]) <= tile
        return x.repeat_interleave(scale, -1).repeat_interleave(scale, -2) ** 2

    found = in_tiles(work, inputs, tile, min(overlap, tile - 1), scale)
    torch.testing.assert_close(found, inputs.repeat_interleave(scale, -1).repeat_interleave(scale, -2) ** 2)


def test_tiling_changes_little_and_nothing_in_a_single_tile(tokenizer: CodaTokenizer) -> None:
    images = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16) * 2 - 1, size=(96, 128), mode="bilinear")
    with torch.no_grad():
        whole = tokenizer.vae.encode(images)
        tokenizer.enable_tiling(128, 32)
        assert torch.equal(tokenizer.vae.encode(images), whole)
        tokenizer.enable_tiling(64, 32)
        tiled = tokenizer.vae.encode(images)
        assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
        assert (tiled - whole).abs().mean() < 0.2 * whole.std()
        assert tokenizer.vae.decode(tiled).shape == images.shape
        tokenizer.disable_tiling()
        assert torch.equal(tokenizer.vae.encode(images), whole)


@pytest.mark.parametrize(
    ("tile", "overlap", "words"), [(63, 8, "multiples of"), (64, 64, "smaller than"), (64, 7, "multi"), (0, 0, "multi")]
)
def test_tiles_that_do_not_fit_are_refused(tokenizer: CodaTokenizer, tile: int, overlap: int, words: str) -> None:
    with pytest.raises(CodaError, match=words):
        tokenizer.enable_tiling(tile, overlap)


PREPARE = """
from coda.tokenizer import CodaTokenizer, ResidualQuantizer, load_vae
from coda.tokenizer.images import decode_image, to_unit

vae = load_vae(sys.argv[1])
path = sorted(Path(sys.argv[2]).rglob("*.*"))[0]
sides = [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]
tokenizer = CodaTokenizer(vae, ResidualQuantizer(vae.latent_channels, 4096, sides, attention_dim=32)).eval()
tokenizer(torch.zeros(1, 3, 64, 64))
if sys.argv[3] == "tiled":
    tokenizer.enable_tiling()
images = torch.nn.functional.interpolate(to_unit(decode_image(path.read_bytes(), (256, 256)))[None],
                                         size=(768, 1024), mode="bicubic").clamp(-1, 1)
"""

RESTORE = """
restored = tokenizer(images)
assert restored.shape == images.shape
"""


def test_a_large_image_takes_little_memory_and_less_in_tiles(
    shared_data: Path, mebibytes: Callable[..., float]
) -> None:
    places = shared_data / "taef2", shared_data / "imagenet-sample-256"
    used = {how: mebibytes(PREPARE, RESTORE, *places, how) for how in ("tiled", "whole")}
    assert used["tiled"] < 1500
    assert used["tiled"] < used["whole"]
