"""`coda benchmark rfid`."""

from __future__ import annotations

from pathlib import Path

from ..cli.arguments import Count, Device, Extractor, Natural, Seed
from .output import ending_of


def rfid(
    *,
    data: str,
    tokenizer: str = "runs/tokenizer",
    vae: str | None = None,
    out: Path = Path("runs/rfid"),
    size: Count | None = None,
    limit: Count | None = None,
    extractor: Extractor = "auto",
    batch_size: Count = 32,
    workers: Natural = 0,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> str:
    """Quality of a tokenizer's reconstructions.

    PSNR, SSIM, Fréchet distance, KID, and codebook usage per level. Inception gives the published metric if its weights
    are installed; efficientnet_lite0 needs no download and gives fd_efficientnet_lite0.

    Args:
        data: Images: ImageFolder, folder, WebDataset tars or parquet; DIR[650:] takes a part.
        tokenizer: Tokenizer directory or hub id.
        vae: A continuous VAE, to measure its own reconstructions as well.
        out: Directory of the report.
        size: Center crop in pixels; the tokenizer's own size if not given.
        limit: Measure at most this many images, drawn by --seed.
        extractor: Feature extractor; auto is inception if its weights are installed.
        batch_size: Images per batch.
        workers: Processes that decode.
        seed: Seed for the draw and for KID's subsets.
        device: auto, cpu, cuda, cuda:1.
        overwrite: Replace what --out holds.
        strict: Stop at an image that cannot be read, instead of skipping it.

    Examples:
        coda benchmark rfid --data photographs --limit 5000
    """
    from coda.benchmarks import reconstruction_metrics
    from coda.tokenizer import load_vae

    report = reconstruction_metrics(
        tokenizer=tokenizer,
        data=data,
        out=out,
        size=size,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        continuous=None if vae is None else load_vae(vae),
        extractor=extractor,
        seed=seed,
        device=device,
        overwrite=overwrite,
        strict=strict,
    )
    return ending_of(report, out)
