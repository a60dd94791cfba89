"""How fast a GPU is, in one report: the last step of `make gpu`.

    python -m coda.pipeline.gpu_report [--out runs/gpu] [--device cuda]

Every part is one command of `coda benchmark`, printed before it runs. Weights are random and have the published sizes,
because speed does not depend on them; images are crops of the photos that scikit-image ships.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coda.tokenizer.foundation.errors import CodaError

from .cli.cli import main as coda
from .demo import crop_photos

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of the published KL16 tokenizer, at 256 pixels
TOKENIZER = ("speed-tokenize", "speed-sample")  # the commands that take one

# The parts of the report, and their commands.
PARTS: Mapping[str, str] = {
    "quantizer": "speed --shapes kl16,flux --codebook-sizes 4096,262144 --repeats 5",
    "generator": "speed --shapes kl16 --generators small,medium,large --batch-size 32",
    "tokenizer": "speed-sample --batch-size 32",
    "tokenizing": "speed-tokenize --workers 4",
    "peers": "speed --shapes kl16 --generators medium --peers ours,flattened,amused,muse --batch-size 32",
}


def gpu_report(
    out: Path,
    device: str = "cuda",
    parts: Mapping[str, str] = PARTS,
    width: int = 128,
    sides: Sequence[int] = SIDES,
    codebook_size: int = 16_384,
) -> int:
    """Run the benchmarks and join their reports in `out`: report.json and report.md.

    Args:
        out: Directory of the report; that of each part is inside.
        device: Where to run.
        parts: What follows `coda benchmark`, for each part.
        width: Width of the VAE; KL16's is 128.
        sides: Sides of the tokenizer's levels.
        codebook_size: K of the tokenizer.

    Returns:
        The exit status of the first part that failed, or 0.

    Raises:
        CodaError: If there is no such device.
    """
    from coda.benchmarks import Report
    from coda.benchmarks.reports.provenance import describe_run
    from coda.tokenizer.foundation.device import resolve_device

    found = resolve_device(device)
    reports = {}
    for name, command in parts.items():
        measured, *flags = shlex.split(command)
        words = ["benchmark", measured, *flags, "--device", device, "--out", str(out / name), "--overwrite"]
        if measured in TOKENIZER:
            words += ["--tokenizer", _save_tokenizer(out / "model", width, sides, codebook_size)]
        if measured == "speed-tokenize":
            words += ["--data", str(crop_photos(out / "photographs", 16 * sides[-1]))]
        print(f"\n$ coda {shlex.join(words)}", flush=True)
        if status := coda(words):
            return status
        reports[name] = Report.load(out / name)
    joined = Report(
        title="Speed on " + str(describe_run(found)["hardware"].get("gpu", found)),
        figures=[replace(figure, name=f"{n}: {figure.name}") for n, part in reports.items() for figure in part.figures],
        provenance={**describe_run(found), "commands": [part.provenance["command"] for part in reports.values()]},
        tables=[replace(table, title=f"{n}: {table.title}") for n, part in reports.items() for table in part.tables],
    )
    joined.save(out)
    print(f"Made the report in {out}: report.json and report.md")
    return 0


def _save_tokenizer(folder: Path, width: int, sides: Sequence[int], codebook_size: int) -> str:
    """Save a tokenizer of KL16's architecture with random weights; returns its path."""
    import torch
    from diffusers import AutoencoderKL

    from coda.tokenizer import CodaTokenizer, ContinuousVAE, ResidualQuantizer

    if not folder.exists():
        torch.manual_seed(0)
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",) * 5,
            block_out_channels=tuple(width * times for times in (1, 1, 2, 2, 4)),
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=min(32, width),
        )
        quantizer = ResidualQuantizer(16, codebook_size, list(sides), attention_dim=32, norm="rms_norm")
        CodaTokenizer(ContinuousVAE(autoencoder, [0.0], [1.0]).eval(), quantizer.eval()).save_pretrained(folder)
    return str(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the report from the command line; returns the exit status."""
    parser = argparse.ArgumentParser("coda.pipeline.gpu_report", description="How fast a GPU is, in one report.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="output directory [default: runs/gpu]")
    parser.add_argument("--device", default="cuda", help="where to run [default: cuda]")
    try:
        return gpu_report(**vars(parser.parse_args(argv)))
    except CodaError as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
