"""Flags that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.settings import (
    Count,
    Device,
    Precision,
    Settings,
    Size,
    Unsplit,
    setting,
)

from ..cli.arguments import Help

Data = Annotated[str, Help("Images: ImageFolder, folder, WebDataset tars or parquet; DIR[:650] takes a part.")]
Validation = Annotated[
    str | None, Help("Images to validate on, as --data; by default a share of the data is set aside.")
]
Vae = Annotated[str, Help("The continuous VAE: a directory, a weights file of MAR's KL16 or of TAEF2, or a hub id.")]
Tokenizer = Annotated[str, Help('Tokenizer directory or hub id, or "bundled".')]
Cache = Annotated[Path, Help("Code cache that tokenize-dataset made.")]
Out = Annotated[Path, Help("Output directory.")]
Overwrite = Annotated[bool, Help("Replace the existing output.")]
ShardSize = Annotated[Count, Help("Images per shard of the cache.")]
BatchSize = Annotated[Count, Help("Images per batch.")]
TokenizerSize = Annotated[
    Size | None, Help("Image size in pixels, 256 or 192x256 (height x width); by default the tokenizer's.")
]
Classes = Annotated[
    tuple[str, ...],
    Unsplit,
    Help(
        'Index (207), WordNet id (n02099601) or name ("golden retriever"); several with commas, or repeat the flag; '
        '"all" for all that the model knows.'
    ),
]


@dataclass(frozen=True)
class ModelOptions(Settings):
    """The model that samples."""

    model: str = setting("bundled", 'Generator directory, pipeline directory or hub id, or "bundled".')
    tokenizer: str | None = setting(None, "Tokenizer directory or hub id for a generator; by default runs/tokenizer.")


@dataclass(frozen=True)
class Placement(Settings):
    """Where a model runs."""

    device: Device = setting("auto", "Device: auto, cpu, cuda, cuda:1 or mps.")
    dtype: Precision = setting("auto", "Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.")
