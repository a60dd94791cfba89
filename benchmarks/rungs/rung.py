"""The rungs of the ablation: which quantizer, which levels, which start, with or without LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import Grid


@dataclass(frozen=True)
class Rung:
    """One trained tokenizer of the ablation.

    Attributes:
        quantizer: "vq" (nearest neighbor, EMA codebook), "vq gradient" (nearest neighbor, codebook learned by
            gradient) or "attention" (CODA's retrieval).
        sides: Grids of its levels; one alone is direct VQ.
        start: "data" starts from residual k-means, "random" from random weights, "scratch" from random weights of the
            VAE, too, which is trained as a whole.
        lora_rank: Rank of the LoRA on the VAE; 0 leaves the VAE unchanged.
        budget: Multiple of the images that the other rungs see.
        metric: Distance of k-means and of the retrieval at the start: between latents, or weighed by the decoder's
            sensitivity, see `decoder_metric`.
        perturbed: Share of the codes that the decoder sees replaced by near ones while it learns.
    """

    quantizer: Literal["vq", "vq gradient", "attention"]
    sides: tuple[Grid, ...]
    start: Literal["data", "random", "scratch"] = "data"
    lora_rank: int = 0
    budget: int = 1
    metric: Literal["latent", "decoder"] = "latent"
    perturbed: float = 0.0

    @property
    def slug(self) -> str:
        """Name of its folder."""
        lora = f"-lora-{self.lora_rank}" if self.lora_rank else ""
        budget = f"-budget-{self.budget}" if self.budget > 1 else ""
        metric = "-decoder-metric" if self.metric == "decoder" else ""
        perturbed = f"-perturbed-{self.perturbed:g}" if self.perturbed else ""
        quantizer = self.quantizer.replace(" ", "-")
        return f"{quantizer}-levels-{len(self.sides):02d}-{self.start}{lora}{budget}{metric}{perturbed}"


Rungs = Mapping[str, Rung]


def ladder(sides: Sequence[Grid], lora_rank: int) -> dict[str, Rung]:
    """The paper's ablation: every rung adds one idea to the one before it."""
    levels = tuple(sides)
    return {
        "direct VQ": Rung("vq", levels[-1:]),
        "+ residual levels": Rung("vq", levels),
        "+ attention": Rung("attention", levels),
        "+ LoRA on the VAE": Rung("attention", levels, lora_rank=lora_rank),
    }


def starts(sides: Sequence[Grid], lora_rank: int) -> dict[str, Rung]:
    """The rungs of `ladder` from random weights, and VQ's other rule for the codebook."""
    levels = tuple(sides)
    return {
        "direct VQ, random start": Rung("vq", levels[-1:], "random"),
        "direct VQ by gradient, random start": Rung("vq gradient", levels[-1:], "random"),
        "+ residual levels, random start": Rung("vq", levels, "random"),
        "+ attention, random start": Rung("attention", levels, "random"),
        "+ LoRA on the VAE, random start": Rung("attention", levels, "random", lora_rank),
    }


def variants(sides: Sequence[Grid], lora_rank: int) -> dict[str, Rung]:
    """Rungs that are not in the paper: the decoder's metric at the start, and perturbed codes in training."""
    levels = tuple(sides)
    return {
        "+ attention, decoder's metric": Rung("attention", levels, metric="decoder"),
        "+ LoRA on the VAE, decoder's metric": Rung("attention", levels, lora_rank=lora_rank, metric="decoder"),
        "+ LoRA on the VAE, perturbed codes": Rung("attention", levels, lora_rank=lora_rank, perturbed=0.1),
    }


def scratch(sides: Sequence[Grid]) -> dict[str, Rung]:
    """A VQGAN-style model: VAE and direct VQ trained together from random weights, on as many images or six times that.

    The paper compares with a VQGAN that was trained six times as long.
    """
    level = tuple(sides)[-1:]
    return {
        "VQ-VAE from scratch": Rung("vq", level, "scratch"),
        "VQ-VAE from scratch, 6 x the images": Rung("vq", level, "scratch", budget=6),
    }


def level_sweep(sides: Sequence[Grid], counts: Sequence[int] | None = None) -> dict[str, Rung]:
    """One rung of residual VQ per number of levels, with sides evenly spread over all, including the last (Figure 4).

    Args:
        sides: All sides.
        counts: Numbers of levels; None takes 1, 2, 4, … and all.

    Raises:
        CodaError: If a number of levels is not in [1, len(sides)].
    """
    if counts is None:
        counts = [*(2**i for i in range(len(sides).bit_length()) if 2**i < len(sides)), len(sides)]
    for count in counts:
        if not 1 <= count <= len(sides):
            raise CodaError(f"levels {count}: expected 1 to {len(sides)}")
    return {str(count): Rung("vq", _evenly(sides, count)) for count in sorted(set(counts))}


def _evenly(sides: Sequence[Grid], count: int) -> tuple[Grid, ...]:
    """`count` of the sides, evenly spread, including the last; a single one is the last."""
    if count == 1:
        return (sides[-1],)
    return tuple(sides[round(i * (len(sides) - 1) / (count - 1))] for i in range(count))
