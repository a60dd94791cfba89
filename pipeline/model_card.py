"""The README.md that is written beside a saved pipeline: what it is, how it is used, what it was made from."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from .coda_pipeline import CodaPipeline

_TEMPLATE = """\
---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- coda
- image-tokenizer
- class-conditional-image-generation
- masked-image-modeling
---

# {title}

Generates {width}×{height} pictures of {known}. A continuous autoencoder was adapted into a discrete tokenizer
(Liu et al., [CODA](https://arxiv.org/abs/2503.17760)); a masked transformer (MaskGIT) fills in its codes level by
level; the autoencoder's decoder turns them into a picture.

## Use

```python
from coda.pipeline import CodaPipeline

pipeline = CodaPipeline.from_pretrained("{place}")
images = pipeline({example}, num_images_per_class=4, generator=0).images
```

or `coda sample --model {place}{example_flag}`.

## What is inside

| part | what | parameters |
| --- | --- | --- |
| `vae` | {vae_class}, {factor}× smaller each way, {channels} channels | {vae_parameters} |
| `quantizer` | K = {codebook_size:,}, sides {sides} | {quantizer_parameters} |
| `transformer` | {transformer_class} | {transformer_parameters} |
| `scheduler` | {scheduler} | |

A picture is {tokens:,} codes of {bits_per_code:.3g} bits: {bits:,.0f} bits, {bits_per_pixel:.3g} per pixel.
{fingerprint}
## Classes

{classes}

## Limits

It knows the classes above and nothing else, at this one size. What it was trained on decides what it shows, prejudices
included. Pictures are drawn at random: look before you publish.
"""


def model_card(pipeline: CodaPipeline, place: str) -> str:
    """The text of README.md for `pipeline`, saved at `place` (a folder's name or a hub id)."""
    layout, (height, width) = pipeline.tokenizer.layout, pipeline.tokenizer.size
    bits_per_code = math.log2(layout.codebook_size)
    table = pipeline.classes
    known = [table[index] for index in table.seen]
    example = known[0] if known else None
    spelled = [f"{entry.index} {entry.name}" if entry.names else str(entry.index) for entry in known]
    fingerprint = pipeline.tokenizer_fingerprint
    autoencoder = pipeline.vae.config["architecture"]["_class_name"]
    settings = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    return _TEMPLATE.format(
        title=place.rstrip("/").split("/")[-1],
        place=place,
        width=width,
        height=height,
        known=_counted(len(table.seen)),
        example=json.dumps(example.name) if example and example.names else example and example.index,
        example_flag=f' --class "{example.name}"' if example else "",
        vae_class=autoencoder,
        factor=pipeline.vae.factor,
        channels=pipeline.vae.latent_channels,
        codebook_size=layout.codebook_size,
        sides=" ".join(str(h) if h == w else f"{h}x{w}" for h, w in layout.sides),
        transformer_class=type(pipeline.transformer).__name__,
        scheduler=", ".join(f"{key} {value}" for key, value in settings.items()) or type(pipeline.scheduler).__name__,
        vae_parameters=_count(pipeline.vae),
        quantizer_parameters=_count(pipeline.quantizer),
        transformer_parameters=_count(pipeline.transformer),
        tokens=layout.num_tokens,
        bits_per_code=bits_per_code,
        bits=layout.num_tokens * bits_per_code,
        bits_per_pixel=layout.num_tokens * bits_per_code / (height * width),
        fingerprint=f"The transformer was trained on codes of the tokenizer `{fingerprint}`.\n" if fingerprint else "",
        classes=", ".join(spelled) or "None: it was trained on pictures without labels.",
    )


def _counted(classes: int) -> str:
    return {0: "what it was trained on", 1: "one class"}.get(classes, f"{classes:,} classes")


def _count(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
