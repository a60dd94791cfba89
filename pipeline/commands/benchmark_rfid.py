"""`coda benchmark rfid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import benchmarks
from coda import tokenizer as library
from coda.benchmarks.settings import ReconstructionSettings
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, Without
from .flags import Data, Out, Tokenizer
from .model import tokenizer_place
from .output import ending_of


def rfid(
    *,
    data: Data,
    tokenizer: Tokenizer = "runs/tokenizer",
    vae: Annotated[str | None, Help("A continuous VAE, whose own reconstructions are measured too.")] = None,
    out: Out = Path("runs/rfid"),
    settings: ReconstructionSettings,
    run: Annotated[RunOptions, Without("dtype", "checkpoint_every", "log_with")],
) -> str:
    """Measure the quality of a tokenizer's reconstructions.

    PSNR, SSIM, Fréchet distance, KID, and codebook usage per level. Inception gives the published metric if its weights
    are installed; efficientnet_lite0 needs no download and gives fd_efficientnet_lite0.

    Examples:
        coda benchmark rfid --data photos --limit 5000
    """
    continuous = None if vae is None else library.load_vae(vae)
    return ending_of(
        benchmarks.reconstruction_metrics(tokenizer_place(tokenizer), data, out, settings, run, continuous),
        out,
    )
