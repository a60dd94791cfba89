"""`coda benchmark ablation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..cli.arguments import Count, Device, Extractor, Natural, Range, Seed, Side
from .output import ending_of


def ablation(
    *,
    data: str,
    vae: str = "runs/vae",
    test_data: str | None = None,
    out: Path = Path("runs/ablation"),
    size: Count = 256,
    sides: tuple[Side, ...] | None = None,
    codebook_size: Annotated[int, Range(2)] = 4096,
    levels: tuple[Count, ...] | None = None,
    steps: Natural = 200,
    batch_size: Count = 8,
    lora_rank: Natural = 32,
    limit: Count | None = None,
    workers: Natural = 0,
    extractor: Extractor = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> str:
    """The paper's ablation: direct VQ, residual levels, attention, LoRA.

    Also sweeps over the number of levels. Finished tokenizers are kept: rerun the same command to resume.

    Args:
        data: Images to adapt on: ImageFolder, folder, WebDataset tars or parquet; DIR[:650] takes a part.
        vae: The continuous VAE.
        test_data: Images to measure on; --data if not given, and the report says so.
        out: Directory of the report; each rung's tokenizer and figures are under rungs/.
        size: Center crop in pixels.
        sides: Grids of the levels, smallest first (1,2,4,8 or 1x2,2x4); by default chosen by the latent's size.
        codebook_size: Number of codes.
        levels: Numbers of levels of the sweep; 1, 2, 4, ... and all if not given.
        steps: Training steps of the rungs that train.
        batch_size: Images per batch.
        lora_rank: LoRA rank of the last rung.
        limit: Measure on at most this many images, drawn by --seed.
        workers: Processes that decode.
        extractor: Feature extractor; auto is inception if its weights are installed.
        seed: Seed for all randomness.
        device: auto, cpu, cuda, cuda:1.
        overwrite: Replace what --out holds.
        strict: Stop at an image that cannot be read, instead of skipping it.

    Examples:
        coda benchmark ablation --vae runs/vae --data "photographs[:650]" --test-data "photographs[650:]" --size 64
    """
    from coda.benchmarks import ablation as run

    report = run(
        vae=vae,
        data=data,
        test_data=test_data,
        out=out,
        size=size,
        sides=sides,
        codebook_size=codebook_size,
        levels=levels,
        steps=steps,
        batch_size=batch_size,
        lora_rank=lora_rank,
        limit=limit,
        workers=workers,
        extractor=extractor,
        seed=seed,
        device=device,
        overwrite=overwrite,
        strict=strict,
    )
    return ending_of(report, out)
