"""Editing a photograph: its codes inside a region are sampled anew, the others stay.

    B variants · T codes · L levels · (H, W) pixels · (h_l, w_l) cells of level l

A cell of a level is sampled anew if enough of its area lies in the region. Coarse cells reach beyond the region, so
new codes there change what the finer levels have to add everywhere; the codes that stay are therefore looked up again,
level by level, for what is left of the photograph's own latent. What lies outside then comes out as the tokenizer sees
it, whatever is sampled inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from coda.tokenizer import CodaError, ResidualQuantizer
from coda.tokenizer.images import to_pil, to_uint8
from coda.tokenizer.images.psnr_ssim import psnr
from coda.tokenizer.quantizer.resampling import downsample, upsample
from coda.tokenizer.quantizer.retrieval import argmax_codes

from .coda_pipeline import CodaPipeline
from .grid import labelled_grid
from .photograph import Picture, open_photograph
from .regions import Region, box_pixels, cells_to_keep, region_mask, soft_inside
from .seeds import Seeds, generators_per_image

_NOTHING = (128, 128, 128)  # shown where an outpainted photograph has nothing


@dataclass(frozen=True)
class Edit:
    """Variants of one photograph.

    Attributes:
        images: The variants.
        original: The photograph as the tokenizer sees it, scaled and cropped.
        mask: What was to change, white.
        codes: (B, T) int64.
        resampled: How many of the T codes were sampled anew.
        outside_psnr: For each variant, how well the *decoded* picture keeps what lies outside of the region, dB: what
            a composite covers up. None where nothing lies outside.
    """

    images: list[Image.Image]
    original: Image.Image
    mask: Image.Image
    codes: torch.Tensor
    resampled: int
    outside_psnr: list[float] | None

    def grid(self) -> Image.Image:
        """Original, region and variants in one picture."""
        shown = [("original", self.original)] + ([] if self.outside_psnr is None else [("region", self.mask)])
        shown += [(f"variant {number}", image) for number, image in enumerate(self.images, start=1)]
        return labelled_grid([image for _, image in shown], [label for label, _ in shown])


def inpaint(
    pipeline: CodaPipeline, image: Picture, region: Region, class_label: int | str | None = None, **settings: Any
) -> Edit:
    """Fill a region anew so that it fits the rest.

    Args:
        pipeline: What samples.
        image: The photograph.
        region: What to fill; see `region_mask`.
        class_label: What the picture shows; without it, sampling has no class and no guidance.
        **settings: As in `resample`.
    """
    return resample(pipeline, image, region, class_label, **settings)


def outpaint(
    pipeline: CodaPipeline,
    image: Picture,
    box: Sequence[float] = (0.25, 0.25, 0.75, 0.75),
    class_label: int | str | None = None,
    **settings: Any,
) -> Edit:
    """Make a photograph smaller and paint on around it.

    Args:
        pipeline: What samples.
        image: The photograph; it is cropped to the aspect of `box`.
        box: Where it goes within the new picture: (left, top, right, bottom) in pixels, or as shares of its size.
        class_label: As in `inpaint`.
        **settings: As in `resample`.
    """
    height, width = pipeline.tokenizer.size
    left, top, right, bottom = box_pixels(box, height, width)
    placed = open_photograph(image, (bottom - top, right - left))
    # What lies around is painted over, but the encoder sees across the edge: let it see no other edge there.
    canvas = F.pad(placed, (left, width - right, top, height - bottom), mode="replicate")
    around = torch.ones(height, width, dtype=torch.bool)
    around[top:bottom, left:right] = False
    edit = resample(pipeline, canvas, around, class_label, **settings)
    original = Image.new("RGB", (width, height), _NOTHING)
    original.paste(edit.original.crop((left, top, right, bottom)), (left, top))
    return replace(edit, original=original)


def vary(
    pipeline: CodaPipeline,
    image: Picture,
    region: Region | None = None,
    keep_levels: int | None = None,
    class_label: int | str | None = None,
    **settings: Any,
) -> Edit:
    """Other versions of a photograph: coarse levels stay, so layout and colours do; finer ones are sampled anew.

    Args:
        pipeline: What samples.
        image: The photograph.
        region: Where to; everywhere if None.
        keep_levels: How many of the coarsest levels stay; half of them by default. More of them vary it less.
        class_label: As in `inpaint`.
        **settings: As in `resample`.
    """
    kept = pipeline.tokenizer.layout.num_levels // 2 if keep_levels is None else keep_levels
    return resample(pipeline, image, region, class_label, keep_levels=kept, **settings)


def change_class(
    pipeline: CodaPipeline,
    image: Picture,
    class_label: int | str,
    region: Region | None = None,
    keep_levels: int | None = None,
    **settings: Any,
) -> Edit:
    """Make something else of what a photograph shows, in its place and about its colours.

    Args:
        pipeline: What samples.
        image: The photograph.
        class_label: What it is to show.
        region: Where; everywhere if None.
        keep_levels: How many of the coarsest levels stay; a quarter of them by default.
        **settings: As in `resample`.
    """
    kept = pipeline.tokenizer.layout.num_levels // 4 if keep_levels is None else keep_levels
    return resample(pipeline, image, region, class_label, keep_levels=kept, **settings)


@torch.no_grad()
def resample(
    pipeline: CodaPipeline,
    image: Picture,
    region: Region | None,
    class_label: int | str | None,
    *,
    keep_levels: int = 0,
    coverage: float = 0.5,
    composite: bool = True,
    num_images: int = 1,
    guidance_scale: float | None = None,
    num_inference_steps: int | Sequence[int] | None = None,
    generator: Seeds = None,
    batch_size: int = 16,
) -> Edit:
    """Sample the codes of a region anew: what all kinds of editing are.

    Args:
        pipeline: What samples.
        image: The photograph.
        region: See `region_mask`; everything if None.
        class_label: What the picture shows; None samples without a class and without guidance.
        keep_levels: How many of the coarsest levels stay as they are everywhere.
        coverage: A cell is sampled anew if at least this share of its area lies in the region, in (0, 1].
        composite: Lay the photograph's own pixels over everything outside of the region, which then stays as it was to
            the bit; the seam is blended inside the region. Otherwise variants are what the decoder gives.
        num_images: How many variants.
        guidance_scale: As in a call of the pipeline.
        num_inference_steps: As in a call of the pipeline.
        generator: As in a call of the pipeline.
        batch_size: As in a call of the pipeline.

    Raises:
        CodaError: The image or the region cannot be read, the region is empty, or a number is out of range.
    """
    tokenizer, quantizer = pipeline.tokenizer, pipeline.quantizer
    layout, size = tokenizer.layout, tokenizer.size
    if not 0 <= keep_levels < layout.num_levels:
        raise CodaError(
            f"keep_levels is {keep_levels}; of {layout.num_levels} levels 0 to {layout.num_levels - 1} can stay"
        )
    if not 0 < coverage <= 1 or num_images < 1 or batch_size < 1:
        raise CodaError("coverage must lie in (0, 1], the number of images and the batch size must be 1 at least")
    label = None if class_label is None else pipeline.classes.find(class_label)
    photograph = open_photograph(image, size)
    mask = torch.ones(size, dtype=torch.bool) if region is None else region_mask(region, size)
    keep = cells_to_keep(layout, mask, keep_levels, coverage)  # (T,)
    if bool(keep.all()):
        raise CodaError("the region covers no cell of the picture's codes: make it larger, or the coverage smaller")

    latents = pipeline.vae.encode(photograph.to(pipeline.vae.device))
    codes = quantizer.encode(latents.to(quantizer.device))
    labels = [label] * num_images
    sampled = pipeline.sample_codes(
        labels,
        generators_per_image(generator, labels),
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        known=(codes.expand(num_images, -1), keep.expand(num_images, -1)),
        batch_size=batch_size,
        callback=_look_up_again(quantizer, latents.float().to(quantizer.device), keep.to(quantizer.device)),
        callback_tensors=("codes", "prefix_latents"),
    )
    decoded = pipeline.decode(sampled).cpu()

    outside = None
    if not bool(mask.all()):
        before = to_uint8(photograph)[..., ~mask].unsqueeze(2)  # the pixels outside, as a picture of one row
        after = to_uint8(decoded)[..., ~mask].unsqueeze(2)
        outside = psnr(before.expand_as(after), after)
    if composite:
        alpha = soft_inside(mask, pipeline.vae.factor // 2)
        decoded = torch.lerp(photograph, decoded, alpha)
    return Edit(
        images=[to_pil(picture) for picture in decoded],
        original=to_pil(photograph[0]),
        mask=Image.fromarray((mask.numpy() * 255).astype("uint8")),
        codes=sampled.cpu(),
        resampled=int((~keep).sum()),
        outside_psnr=None if outside is None else outside.tolist(),
    )


def _look_up_again(
    quantizer: ResidualQuantizer, latents: torch.Tensor, keep: torch.Tensor
) -> Callable[..., dict[str, torch.Tensor]]:
    """A callback that, once a level is full, looks up the next level's kept codes for the residual that is left.

    Args:
        quantizer: What looks them up.
        latents: (1, C, h, w) float32, the photograph's own.
        keep: (T,) bool.
    """
    layout, keys, values = quantizer.layout, quantizer.keys(), quantizer.values()

    def look_up(
        pipeline: CodaPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        ends = [end - 1 for end in accumulate(pipeline.scheduler.steps)]  # the step that fills each level
        if int(timestep) not in ends[:-1]:
            return {}
        level = ends.index(int(timestep))
        codes = tensors["codes"].to(keep.device).clone()  # (B, T)
        cells = slice(layout.offsets[level + 1], layout.offsets[level + 2])
        said = F.embedding(layout.split(codes)[level], values).movedim(-1, 1).float()
        prefix = tensors["prefix_latents"].to(latents) + upsample(said, layout.grid)  # before level + 1
        left = downsample(latents - prefix, layout.sides[level + 1]).to(keys.dtype)
        found, _ = argmax_codes(quantizer.queries(left), keys)
        codes[:, cells] = torch.where(keep[cells], found.view(len(codes), -1), codes[:, cells])
        return {"codes": codes.to(tensors["codes"].device)}

    return look_up
