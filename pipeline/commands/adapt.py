"""`coda adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ..arguments import Count, Device, Fraction, Natural, Positive, Precision, Range, Seed, Side, Weight


def adapt(
    *,
    data: str,
    vae: str = "runs/vae",
    out: Path = Path("runs/tokenizer"),
    overwrite: bool = False,
) -> str:
    """Continuous VAE + images -> tokenizer directory."""
    from coda.tokenizer import adapt as run

    return f"Made a tokenizer in {run(vae=vae, data=data, out=out, overwrite=overwrite)}"
