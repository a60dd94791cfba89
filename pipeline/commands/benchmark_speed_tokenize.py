"""`coda benchmark speed-tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import benchmarks
from coda.benchmarks.settings import TokenizingSpeedSettings
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Without
from .flags import Data, Out, Tokenizer
from .model import tokenizer_place
from .output import ending_of


def speed_tokenize(
    *,
    data: Data,
    tokenizer: Tokenizer = "runs/tokenizer",
    out: Out = Path("runs/speed-tokenize"),
    settings: TokenizingSpeedSettings,
    run: Annotated[RunOptions, Without("strict", "checkpoint_every", "log_with")],
) -> str:
    """Measure the speed of tokenize-dataset, compared with a plain loop and with the limit of this machine.

    Examples:
        coda benchmark speed-tokenize --tokenizer runs/tokenizer --data photos --limit 5000
    """
    return ending_of(benchmarks.tokenizing_speed(tokenizer_place(tokenizer), data, out, settings, run), out)
