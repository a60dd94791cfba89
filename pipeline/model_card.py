"""The README.md of a saved pipeline: what it is, how to use it, what it was made from.

Class names come from data and are foreign text: they are escaped in Markdown, quoted in code.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from coda.tokenizer.foundation.errors import CodaError, shown
from coda.tokenizer.foundation.hub import card_metadata

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from torch import nn

    from .classes import ClassTable
    from .coda_pipeline import CodaPipeline

_TAGS = ["coda", "image-tokenizer", "class-conditional-image-generation", "masked-image-modeling"]
_TEMPLATE = """\
{metadata}
# {title}

Generates {width}×{height} images of {known}. A continuous autoencoder was adapted into a discrete tokenizer (Liu et
al., [CODA](https://arxiv.org/abs/2503.17760)); a masked transformer (MaskGIT) samples its codes level by level; the
autoencoder's decoder turns them into an image.

## Use

```python
from coda.pipeline import CodaPipeline

pipeline = CodaPipeline.from_pretrained({place})
images = pipeline({example}, num_images_per_class=4, generator=0).images
```

The same images as files in `runs/samples`:

```sh
{command}
```

## Parts

| part | what | parameters |
| --- | --- | --- |
| `vae` | {vae_class}, {factor}× smaller each way, {channels} channels | {vae_parameters} |
| `quantizer` | K = {codebook_size:,}, sides {sides} | {quantizer_parameters} |
| `transformer` | {transformer_class} | {transformer_parameters} |
| `scheduler` | {scheduler} | |

An image is {tokens:,} codes of {bits_per_code:.3g} bits: {bits:,.0f} bits, {bits_per_pixel:.3g} per pixel.
{fingerprint}
## Classes

{classes}
{sections}
## Limits

It generates the classes above only, at this one size, with the biases of the images that it was trained on. Images are
sampled at random: look at them before you publish them.
"""


def model_card(
    pipeline: CodaPipeline,
    place: str,
    sections: Mapping[str, str] = MappingProxyType({}),
    results: Sequence[EvalResult] = (),
) -> str:
    """The text of README.md.

    Args:
        pipeline: What is described.
        place: Where it is saved: a folder's name or a hub id.
        sections: Further sections, such as how it was trained: Markdown by heading.
        results: Figures for the hub, such as `Report.to_eval_results` gives.
    """
    layout, (height, width) = pipeline.tokenizer.layout, pipeline.tokenizer.size
    bits_per_code = math.log2(layout.codebook_size)
    table, transformer = pipeline.classes, pipeline.transformer
    known = [table[index] for index in table.seen]
    spelled = [f"{entry.index} {_markdown(entry.name)}" if entry.names else str(entry.index) for entry in known]
    example = _example(table)
    fingerprint = transformer.config.get("tokenizer_fingerprint")
    settings = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    command = ["coda", "sample", "--model", place, *(["--class", str(example)] if known else [])]
    title = place.rstrip("/").split("/")[-1]
    return _TEMPLATE.format(
        metadata=card_metadata(
            title, results, library_name="diffusers", pipeline_tag="unconditional-image-generation", tags=_TAGS
        ),
        title=_markdown(title),
        place=json.dumps(place),
        width=width,
        height=height,
        known={0: "what it was trained on", 1: "one class"}.get(len(known), f"{len(known):,} classes"),
        example=json.dumps(example) if known else None,
        command=shown(shlex.join(command)),
        vae_class=pipeline.vae.config["architecture"]["_class_name"],
        factor=pipeline.vae.factor,
        channels=pipeline.vae.latent_channels,
        codebook_size=layout.codebook_size,
        sides=" ".join(str(h) if h == w else f"{h}x{w}" for h, w in layout.sides),
        transformer_class=type(transformer).__name__,
        scheduler=", ".join(f"{key} {value}" for key, value in settings.items()) or type(pipeline.scheduler).__name__,
        vae_parameters=_count(pipeline.vae),
        quantizer_parameters=_count(pipeline.quantizer),
        transformer_parameters=_count(transformer),
        tokens=layout.num_tokens,
        bits_per_code=bits_per_code,
        bits=layout.num_tokens * bits_per_code,
        bits_per_pixel=layout.num_tokens * bits_per_code / (height * width),
        fingerprint=f"The transformer was trained on codes of the tokenizer `{fingerprint}`.\n" if fingerprint else "",
        classes=", ".join(spelled) or "None: it was trained on images without labels.",
        sections="".join(f"\n## {heading}\n\n{text}\n" for heading, text in sections.items()),
    )


def _example(table: ClassTable) -> int | str | None:
    """A class to sample: the name of the first one if it is plain text that finds it, else the index."""
    if not table.seen:
        return None
    entry = table[table.seen[0]]
    try:
        plain = re.fullmatch(r"[^\W\d][^`]*", entry.name) and entry.name.isprintable()
        return entry.name if plain and table.find(entry.name) == entry.index else entry.index
    except CodaError:  # several classes have that name
        return entry.index


def _markdown(text: str) -> str:
    """Foreign text, so that it shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", shown(text))


def _count(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
