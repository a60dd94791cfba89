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
    """How well a tokenizer gives photographs back.

    PSNR, SSIM, Fréchet distance, KID, and how much of the codebook each level uses. Inception gives the published
    metric where its weights are; efficientnet_lite0 needs no download and gives fd_efficientnet_lite0.

    Args:
        data: Photographs: ImageFolder, folder, WebDataset tars or parquet; DIR[650:] takes a part.
        tokenizer: Tokenizer directory or hub id.
        vae: A continuous VAE, whose own reconstructions are measured beside the tokenizer's.
        out: Directory of the report.
        size: Pixels each way, centre crop; the tokenizer's own if not given.
        limit: Measure at most that many pictures, drawn by --seed.
        extractor: What compares the pictures; auto is inception where its weights are.
        batch_size: Pictures at a time.
        workers: Processes that decode.
        seed: Of the drawing and of KID's subsets.
        device: auto, cpu, cuda, cuda:1.
        overwrite: Replace what --out holds.
        strict: Stop at a broken picture instead of leaving it out.

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
