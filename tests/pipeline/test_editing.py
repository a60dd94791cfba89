"""Sampling a region of an image again, and leaving the rest alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coda.pipeline import CodaPipeline, change_class, inpaint, outpaint, vary
from coda.pipeline.regions import cells_to_keep, region_mask
from coda.tokenizer import CodaError, CodeLayout
from coda.tokenizer.quantizer.resampling import prefix_latents

from .conftest import make_pipeline

BOX = (8, 0, 16, 8)  # the upper right quarter


@pytest.fixture(scope="module")
def image():
    torch.manual_seed(3)
    return torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4) * 2 - 1, size=16, mode="bilinear")[0]


@pytest.fixture(scope="module")
def nearest():
    """A pipeline whose quantizer takes the nearest code, so that what it keeps of a latent can be measured."""
    pipeline = make_pipeline()
    quantizer, margin = pipeline.quantizer, 64.0
    torch.manual_seed(0)
    codes = torch.randn(32, 4) * torch.logspace(0, -1.5, 32)[:, None]
    codes[-1] = 0
    with torch.no_grad():
        for linear in (quantizer.to_q, quantizer.to_k, quantizer.to_v):
            linear.weight.zero_()
            linear.weight[:4, :4] = torch.eye(4)
            linear.bias.zero_()
        quantizer.to_q.bias[4] = quantizer.to_k.bias[4] = margin
        quantizer.norm_q.weight.fill_(100.0)
        quantizer.codebook.weight.copy_(codes)
        latents = pipeline.vae.encode(torch.rand(8, 3, 16, 16) * 2 - 1)
        pipeline.vae.register_to_config(shift=[float(latents.mean())], scale=[float(1 / latents.std())])
    pipeline.transformer.set_value_table(quantizer.value_table())
    return pipeline


def _pixels(image):
    return np.asarray(image).astype(int)


def test_outside_of_the_region_every_pixel_stays(pipeline, image):
    edit = inpaint(pipeline, image, BOX, "cats", num_images=3, generator=1)
    before, outside = _pixels(edit.original), np.asarray(edit.mask) == 0
    assert outside.sum() == 16 * 16 - 8 * 8
    for image in edit.images:
        assert (_pixels(image)[outside] == before[outside]).all()
        assert (_pixels(image)[~outside] != before[~outside]).any()
    assert len({image.tobytes() for image in edit.images}) == 3
    assert edit.outside_psnr is not None and len(edit.outside_psnr) == 3


def test_without_a_composite_it_is_what_the_decoder_gives(pipeline, image):
    edit = inpaint(pipeline, image, BOX, "cats", generator=1, composite=False)
    decoded = pipeline.decode(edit.codes)
    assert (_pixels(edit.images[0]) == ((decoded[0] + 1) * 127.5).round().movedim(0, -1).numpy()).all()
    assert torch.equal(edit.codes, inpaint(pipeline, image, BOX, "cats", generator=1).codes)
    outside = np.asarray(edit.mask) == 0
    error = (_pixels(edit.images[0]) - _pixels(edit.original))[outside]
    assert edit.outside_psnr == pytest.approx([10 * np.log10(255**2 / (error**2).mean())])


def test_only_the_codes_of_the_region_are_sampled(pipeline, image):
    layout = pipeline.tokenizer.layout
    edit = inpaint(pipeline, image, BOX, "cats", generator=[1, 2], num_images=2, keep_levels=3)
    assert edit.resampled == 16, "the quarter of the last level's cells"
    before = layout.split(pipeline.tokenizer.encode(image[None]))
    after = layout.split(edit.codes)
    assert all(torch.equal(a, b.expand_as(a)) for a, b in zip(after[:3], before[:3], strict=True))
    changed = after[3] != before[3]
    assert changed[:, :4, 4:].any() and not changed[:, 4:].any() and not changed[:, :, :4].any()


def test_kept_codes_are_quantized_again_under_new_coarse_codes(nearest, image):
    layout, latents = nearest.tokenizer.layout, nearest.vae.encode(image[None])
    own = nearest.quantizer.encode(latents)
    # A cell that lies in the region only in part is sampled too: level 0 as a whole, most of level 1.
    edit = inpaint(nearest, image, BOX, "cats", num_images=8, generator=1, coverage=0.1)
    keep = cells_to_keep(layout, region_mask(BOX, (16, 16)), 0, 0.1)
    assert edit.resampled == int((~keep).sum()) and not keep[0]
    table = nearest.quantizer.value_table()

    def error_outside(codes: torch.Tensor) -> float:
        latent = prefix_latents(codes, layout, table)[-1]
        outside = torch.ones(8, 8, dtype=torch.bool)
        outside[:5, 3:] = False  # bicubic upsampling and the region's own cells reach one cell further
        return float((latent - latents)[..., outside].square().mean())

    left_alone = torch.where(keep, own, edit.codes)
    assert error_outside(edit.codes) < 0.5 * error_outside(left_alone)
    assert error_outside(edit.codes) < 2 * error_outside(own)


def test_seeds_and_batches(pipeline, image):
    whole = inpaint(pipeline, image, BOX, 0, num_images=5, generator=4)
    parts = inpaint(pipeline, image, BOX, 0, num_images=5, generator=4, batch_size=2)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(inpaint(pipeline, image, BOX, 0, generator=4).codes, whole.codes[:1])


def test_outpainting_keeps_the_image(pipeline, image):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    edit = outpaint(pipeline, image, (4, 8, 12, 16), "dogs", generator=1)
    assert (_pixels(edit.images[0])[8:16, 4:12] == np.asarray(image)).all()
    assert (np.asarray(edit.mask)[8:16, 4:12] == 0).all() and (np.asarray(edit.mask)[:8] == 255).all()
    assert (_pixels(edit.original)[:8] == 128).all() and (_pixels(edit.original)[8:, 4:12] == np.asarray(image)).all()
    in_shares = outpaint(pipeline, image, (0.25, 0.5, 0.75, 1), "dogs", generator=1)
    assert in_shares.images == edit.images


def test_varying_keeps_the_coarse_levels(pipeline, image):
    layout = pipeline.tokenizer.layout
    before = layout.split(pipeline.tokenizer.encode(image[None]))
    edit = vary(pipeline, image, num_images=2, generator=1)
    after = layout.split(edit.codes)
    assert edit.resampled == 16 + 64 and edit.outside_psnr is None
    assert all(torch.equal(a, b.expand_as(a)) for a, b in zip(after[:2], before[:2], strict=True))
    assert not torch.equal(after[2][0], before[2][0]) and not torch.equal(after[2][0], after[2][1])
    assert vary(pipeline, image, keep_levels=3, generator=1).resampled == 64


def test_changing_the_class_depends_on_the_class(pipeline, image):
    cat, dog = (change_class(pipeline, image, label, generator=[1]) for label in ("cats", 1))
    assert cat.resampled == 84 and not torch.equal(cat.codes, dog.codes)
    assert cat.images[0].tobytes() != dog.images[0].tobytes()


def test_a_mask_image_and_a_box_mean_the_same(tmp_path):
    painted = Image.new("L", (64, 64))
    painted.paste(255, (32, 0, 64, 32))
    painted.save(tmp_path / "mask.png")
    on_transparency = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    on_transparency.paste((255, 255, 255, 255), (32, 0, 64, 32))
    holes = Image.merge("LA", (Image.new("L", (64, 64), 255), painted))
    expected = region_mask(BOX, (16, 16))
    assert torch.equal(region_mask((0.5, 0, 1, 0.5), (16, 16)), expected)
    masks = [painted, tmp_path / "mask.png", str(tmp_path / "mask.png"), on_transparency, holes, expected]
    for region in [*masks, holes.convert("RGBA").quantize()]:
        assert torch.equal(region_mask(region, (16, 16)), expected)


def test_a_mask_has_the_shape_of_the_image(pipeline, tmp_path):
    wide = Image.new("RGB", (48, 32), (9, 99, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright it is 32 wide and 48 high
    wide.save(tmp_path / "turned.png", exif=exif)
    for image, fits, differs in ((wide, (96, 64), (64, 96)), (tmp_path / "turned.png", (32, 48), (48, 32))):
        for size in (fits, (16, 16)):
            assert inpaint(pipeline, image, Image.new("L", size, 255), generator=1).resampled == 85
        for size in (differs, (32, 32)):
            with pytest.raises(CodaError, match="shapes differ"):
                inpaint(pipeline, image, Image.new("L", size, 255))


def test_cells_count_by_their_share_of_the_region():
    layout = CodeLayout((1, 2, 4), 8)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8, 6:16] = True  # 5/16 of the image; the upper left quarter to 1/4

    def sampled(coverage: float, keep_levels: int = 0) -> list[list[int]]:
        keep = cells_to_keep(layout, mask, keep_levels, coverage)
        return [level.flatten().nonzero().flatten().tolist() for level in layout.split((~keep)[None].long())]

    assert sampled(1.0) == [[], [1], [2, 3, 6, 7]]
    assert sampled(0.5) == [[], [1], [1, 2, 3, 5, 6, 7]]
    assert sampled(0.25) == [[0], [0, 1], [1, 2, 3, 5, 6, 7]]
    assert sampled(0.25, keep_levels=2) == [[], [], [1, 2, 3, 5, 6, 7]]


def test_no_class_has_no_guidance(pipeline, image):
    none = inpaint(pipeline, image, BOX, generator=[1])
    assert torch.equal(none.codes, inpaint(pipeline, image, BOX, generator=[1], guidance_scale=7.0).codes)
    assert not torch.equal(none.codes, inpaint(pipeline, image, BOX, "cats", generator=[1]).codes)


def test_half_precision_and_offloading(pipeline, image):
    half, offloaded = make_pipeline().to(torch.bfloat16), make_pipeline()
    codes = inpaint(half, image, BOX, "cats", generator=1, coverage=0.1).codes
    assert codes.shape == (1, 85) and 0 <= codes.min() <= codes.max() < 32
    offloaded.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert inpaint(offloaded, image, BOX, generator=1).images == inpaint(pipeline, image, BOX, generator=1).images


def test_the_grid_shows_the_region_if_there_is_one(pipeline, image):
    edit = inpaint(pipeline, image, BOX, "cats", num_images=2, generator=1)
    assert edit.grid().width > 2 * 128 and edit.grid().height > 2 * 128
    assert vary(pipeline, image, generator=1).grid().height < 2 * 128


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"region": (8, 8, 8, 12)}, "within the image of 16x16"),
        ({"region": (0, 0, 17, 8)}, "within the image"),
        ({"region": (0, 0, float("nan"), 8)}, r"not \(left"),
        ({"region": (0, 0, 8)}, r"not \(left"),
        ({"region": torch.zeros(16, 16, dtype=torch.bool)}, "empty"),
        ({"region": torch.ones(8, 8, dtype=torch.bool)}, "expected torch.bool"),
        ({"region": (3, 3, 4, 4)}, "covers no cell"),
        ({"class_label": "catz"}, "cats"),
        ({"class_label": "birds"}, "never seen"),
        ({"keep_levels": 4}, "expected 0 to 3"),
        ({"coverage": 0.0}, "coverage"),
        ({"num_images": 0}, "number of images"),
    ],
)
def test_a_wrong_argument_is_one_line(pipeline: CodaPipeline, image, settings: dict[str, Any], says: str):
    with pytest.raises(CodaError, match=says) as error:
        inpaint(pipeline, image, **{"region": BOX, **settings})
    assert "\n" not in str(error.value)
