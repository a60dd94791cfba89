"""Editing an image: its codes inside a region are sampled again, the others stay.

    B variants · T codes · L levels · (H, W) pixels · (h_l, w_l) cells of level l

A cell of a level is sampled if enough of its area lies in the region. Coarse cells reach beyond the region, so new
codes there change what the finer levels have to add everywhere. The codes that stay are therefore quantized again,
level by level, from the residual that the new coarser levels leave of the image's own latent. So the image outside of
the region comes out as the tokenizer reconstructs it, whatever is sampled inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from coda.generator.sampling import Hook, SamplingStep
from coda.tokenizer import CodaError, ResidualQuantizer
from coda.tokenizer.images import to_pil, to_uint8
from coda.tokenizer.images.grid import labelled_grid
from coda.tokenizer.images.psnr_ssim import psnr
from coda.tokenizer.images.source import MAX_PIXELS
from coda.tokenizer.quantizer.resampling import downsample
from coda.tokenizer.quantizer.retrieval import argmax_codes

from .coda_pipeline import CodaPipeline
from .image_file import ImageInput, image_shape, load_image
from .regions import Region, box_pixels, cells_to_keep, feathered_mask, region_mask
from .seeds import Seeds, generators_per_image

_EMPTY = (128, 128, 128)  # color around an outpainted image


@dataclass(frozen=True)
class Edit:
    """Variants of one image.

    Attributes:
        images: The variants.
        original: The image as the tokenizer sees it, scaled and cropped.
        mask: The region, white.
        codes: (B, T) int64.
        resampled: How many of the T codes were sampled.
        outside_psnr: PSNR of each variant outside of the region, dB, *decoded* and without the composite; None if
            nothing lies outside.
    """

    images: list[Image.Image]
    original: Image.Image
    mask: Image.Image
    codes: torch.Tensor
    resampled: int
    outside_psnr: list[float] | None

    def grid(self) -> Image.Image:
        """Original, region and variants in one image."""
        cells = [("original", self.original)] + ([] if self.outside_psnr is None else [("region", self.mask)])
        cells += [(f"variant {number}", image) for number, image in enumerate(self.images, start=1)]
        return labelled_grid([image for _, image in cells], [label for label, _ in cells])


# All of these take the settings of `edit_codes` besides. A class of None samples without class and guidance.


def inpaint(
    pipeline: CodaPipeline, image: ImageInput, region: Region, class_label: int | str | None = None, **settings: Any
) -> Edit:
    """Fill a region (see `region_mask`) so that it fits the rest."""
    return edit_codes(pipeline, image, region, class_label, **settings)


def outpaint(
    pipeline: CodaPipeline,
    image: ImageInput,
    box: Sequence[float] = (0.25, 0.25, 0.75, 0.75),
    class_label: int | str | None = None,
    **settings: Any,
) -> Edit:
    """Shrink an image into `box` and continue it around its borders; it is cropped to the aspect ratio of the box.

    The box is (left, top, right, bottom) in pixels of the new image, or as fractions of its size.
    """
    height, width = pipeline.tokenizer.size
    left, top, right, bottom = box_pixels(box, height, width)
    placed = load_image(image, (bottom - top, right - left), settings.get("max_pixels", MAX_PIXELS))
    # The surroundings are sampled, but the encoder sees across the border: it should not see an edge there.
    canvas = F.pad(placed, (left, width - right, top, height - bottom), mode="replicate")
    around = torch.ones(height, width, dtype=torch.bool)
    around[top:bottom, left:right] = False
    edit = edit_codes(pipeline, canvas, around, class_label, **settings)
    original = Image.new("RGB", (width, height), _EMPTY)
    original.paste(edit.original.crop((left, top, right, bottom)), (left, top))
    return replace(edit, original=original)


def vary(
    pipeline: CodaPipeline,
    image: ImageInput,
    region: Region | None = None,
    keep_levels: int | None = None,
    class_label: int | str | None = None,
    **settings: Any,
) -> Edit:
    """Vary an image, or a region of it: composition and colors stay with the `keep_levels` coarsest levels.

    By default half of the levels stay; more of them vary it less.
    """
    kept = pipeline.tokenizer.layout.num_levels // 2 if keep_levels is None else keep_levels
    return edit_codes(pipeline, image, region, class_label, keep_levels=kept, **settings)


def change_class(
    pipeline: CodaPipeline,
    image: ImageInput,
    class_label: int | str,
    region: Region | None = None,
    keep_levels: int | None = None,
    **settings: Any,
) -> Edit:
    """Turn the object in an image, or in a region of it, into another class, in its place and with similar colors.

    The `keep_levels` coarsest levels stay, by default a quarter of them.
    """
    kept = pipeline.tokenizer.layout.num_levels // 4 if keep_levels is None else keep_levels
    return edit_codes(pipeline, image, region, class_label, keep_levels=kept, **settings)


@torch.no_grad()
def edit_codes(
    pipeline: CodaPipeline,
    image: ImageInput,
    region: Region | None,
    class_label: int | str | None,
    *,
    keep_levels: int = 0,
    coverage: float = 0.5,
    composite: bool = True,
    num_images: int = 1,
    generator: Seeds = None,
    max_pixels: int = MAX_PIXELS,
    **sampling: Any,
) -> Edit:
    """Sample the codes of a region again; every kind of editing calls this.

    Args:
        pipeline: The pipeline.
        image: The image.
        region: See `region_mask`; everything if None.
        class_label: Class of the new image; None samples without class and guidance.
        keep_levels: How many of the coarsest levels stay as they are everywhere.
        coverage: A cell is sampled if at least this share of its area lies in the region, in (0, 1].
        composite: Lay the image's own pixels over everything outside of the region, which then stays bit for bit; the
            edge is blended inside of the region. Otherwise variants are what the decoder gives.
        num_images: Number of variants.
        generator: As in a call of the pipeline.
        max_pixels: An image or mask with more pixels is refused, see `load_image`.
        **sampling: `guidance_scale`, `num_inference_steps` and `batch_size`, as in a call of the pipeline.

    Raises:
        CodaError: If the image or the region cannot be read, the region is empty, or a number is out of range.
    """
    layout, size = pipeline.tokenizer.layout, pipeline.tokenizer.size
    if not 0 <= keep_levels < layout.num_levels:
        raise CodaError(f"keep_levels is {keep_levels}; expected 0 to {layout.num_levels - 1} of {layout.num_levels}")
    if not 0 < coverage <= 1 or num_images < 1:
        raise CodaError("coverage must be in (0, 1] and the number of images at least 1")
    label = None if class_label is None else pipeline.classes.find(class_label)
    pixels = load_image(image, size, max_pixels)
    mask = torch.ones(size, dtype=torch.bool)
    if region is not None:
        mask = region_mask(region, size, image_shape(image), max_pixels)
    keep = cells_to_keep(layout, mask, keep_levels, coverage)  # (T,)
    if bool(keep.all()):
        raise CodaError("the region covers no cell of the image's codes: make it larger, or the coverage smaller")

    latents, codes = pipeline.encode(pixels)
    sampled = pipeline.sample_codes(
        [label] * num_images,
        generators_per_image(generator, [label] * num_images),
        known=(codes.expand(num_images, -1), keep.expand(num_images, -1)),
        on_level_end=requantize_kept_codes(pipeline.quantizer, latents.float(), keep),
        **sampling,
    )
    decoded = pipeline.decode(sampled).cpu()
    pipeline.maybe_free_model_hooks()

    outside = None
    if not bool(mask.all()):
        before = to_uint8(pixels)[..., ~mask].unsqueeze(2)  # the pixels outside, as an image of one row
        after = to_uint8(decoded)[..., ~mask].unsqueeze(2)
        outside = psnr(before.expand_as(after), after).tolist()
    if composite:
        decoded = torch.lerp(pixels, decoded, feathered_mask(mask, pipeline.vae.factor // 2))
    return Edit(
        images=[to_pil(variant) for variant in decoded],
        original=to_pil(pixels[0]),
        mask=Image.fromarray((mask.numpy() * 255).astype("uint8")),
        codes=sampled.cpu(),
        resampled=int((~keep).sum()),
        outside_psnr=outside,
    )


def requantize_kept_codes(quantizer: ResidualQuantizer, latents: torch.Tensor, keep: torch.Tensor) -> Hook:
    """A hook for the end of a level: quantizes the next level's kept codes from the residual that is left.

    `latents` are the image's own, (1, C, h, w) float32; `keep` is (T,) bool.
    """
    layout, keys = quantizer.layout, quantizer.keys()

    def requantize(state: SamplingStep) -> torch.Tensor | None:
        level = state.level + 1
        if level == layout.num_levels:
            return None
        cells = slice(layout.offsets[level], layout.offsets[level + 1])
        device = quantizer.device  # with model offloading not that of the sampling
        residual = downsample(latents.to(state.prefix) - state.prefix, layout.sides[level]).to(device, keys.dtype)
        found, _ = argmax_codes(quantizer.queries(residual), keys.to(device))
        found = found.view(len(state.codes), -1).to(state.codes)
        codes = state.codes.clone()
        codes[:, cells] = torch.where(keep[cells].to(codes.device), found, codes[:, cells])
        return codes

    return requantize
