"""`coda benchmark rfid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.settings import Count

from ..cli.arguments import Help
from .flags import BatchSize, Data, Limit, MeasureOptions, Out, Tokenizer
from .output import ending_of


def rfid(
    *,
    data: Data,
    tokenizer: Tokenizer = "runs/tokenizer",
    vae: Annotated[str | None, Help("A continuous VAE, whose own reconstructions are measured too.")] = None,
    out: Out = Path("runs/rfid"),
    size: Annotated[Count | None, Help("Image size in pixels, center crop; by default the tokenizer's.")] = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    options: MeasureOptions,
) -> str:
    """Measure the quality of a tokenizer's reconstructions.

    PSNR, SSIM, Fréchet distance, KID, and codebook usage per level. Inception gives the published metric if its weights
    are installed; efficientnet_lite0 needs no download and gives fd_efficientnet_lite0.

    Examples:
        coda benchmark rfid --data photos --limit 5000
    """
    from coda.benchmarks import reconstruction_metrics
    from coda.tokenizer import load_vae

    continuous = None if vae is None else load_vae(vae)
    report = reconstruction_metrics(
        tokenizer, data, out, size, batch_size, limit=limit, continuous=continuous, **vars(options)
    )
    return ending_of(report, out)
