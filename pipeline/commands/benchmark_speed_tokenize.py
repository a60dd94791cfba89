"""`coda benchmark speed-tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.settings import Count
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, Without
from .flags import BatchSize, Data, Out, Repeats, Tokenizer
from .output import ending_of


def speed_tokenize(
    *,
    data: Data,
    tokenizer: Tokenizer = "runs/tokenizer",
    limit: Annotated[Count | None, Help("Use only this many images, the first.")] = None,
    out: Out = Path("runs/speed-tokenize"),
    batch_size: BatchSize = 32,
    repeats: Repeats = 3,
    run: Annotated[RunOptions, Without("strict", "checkpoint_every")],
) -> str:
    """Measure the speed of tokenize-dataset, against what the machine allows and a plain loop.

    Examples:
        coda benchmark speed-tokenize --tokenizer runs/tokenizer --data photos --limit 5000
    """
    from coda.benchmarks import tokenizing_speed

    options = (batch_size, run.workers, repeats, run.device, run.dtype, run.overwrite)
    report = tokenizing_speed(tokenizer, data, out, limit, *options)
    return ending_of(report, out)
