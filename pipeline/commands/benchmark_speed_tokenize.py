"""`coda benchmark speed-tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.settings import Count, Natural

from ..cli.arguments import Help
from .flags import BatchSize, Data, Out, Overwrite, Placement, Repeats, Tokenizer
from .output import ending_of


def speed_tokenize(
    *,
    data: Data,
    tokenizer: Tokenizer = "runs/tokenizer",
    limit: Annotated[Count | None, Help("Use only this many images, the first.")] = None,
    out: Out = Path("runs/speed-tokenize"),
    batch_size: BatchSize = 32,
    workers: Annotated[Natural, Help("Worker processes that load data; 0 loads in the main process.")] = 0,
    repeats: Repeats = 3,
    placement: Placement,
    overwrite: Overwrite = False,
) -> str:
    """Measure the speed of tokenize-dataset, against what the machine allows and a plain loop.

    Examples:
        coda benchmark speed-tokenize --tokenizer runs/tokenizer --data photos --limit 5000
    """
    from coda.benchmarks import tokenizing_speed

    report = tokenizing_speed(
        tokenizer, data, out, limit, batch_size, workers, repeats, placement.device, placement.dtype, overwrite
    )
    return ending_of(report, out)
