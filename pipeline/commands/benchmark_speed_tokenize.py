"""`coda benchmark speed-tokenize`."""

from __future__ import annotations

from pathlib import Path

from ..cli.arguments import Count, Device, Natural, Precision
from .output import ending_of


def speed_tokenize(
    *,
    data: str,
    tokenizer: str = "runs/tokenizer",
    limit: Count | None = None,
    out: Path = Path("runs/speed-tokenize"),
    batch_size: Count = 32,
    workers: Natural = 0,
    repeats: Count = 3,
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Speed of tokenize-dataset, against what the machine allows and a plain loop.

    Args:
        data: Images: ImageFolder, folder, WebDataset tars or parquet.
        tokenizer: Tokenizer directory or hub id.
        limit: Take only this many images, the first.
        out: Directory of the report.
        batch_size: Images per batch.
        workers: Processes that decode.
        repeats: Repetitions; the fastest counts.
        device: auto, cpu, cuda, cuda:1.
        dtype: Precision of the VAE; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda benchmark speed-tokenize --tokenizer runs/tokenizer --data photographs --limit 5000
    """
    from coda.benchmarks import tokenizing_speed

    report = tokenizing_speed(tokenizer, data, out, limit, batch_size, workers, repeats, device, dtype, overwrite)
    return ending_of(report, out)
