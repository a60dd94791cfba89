"""`coda benchmark judge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from coda import benchmarks
from coda.benchmarks.settings import JudgeSettings
from coda.generator.settings import SamplingSettings
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, Without
from .flags import Data, ModelOptions, Out, Placement
from .model import open_pipeline, sampler_of, sampling_record
from .output import ending_of

if TYPE_CHECKING:
    from coda.benchmarks import Report
    from coda.tokenizer.images import ImageSource

    from ..coda_pipeline import CodaPipeline


def judge(
    *,
    data: Data,
    validation: Annotated[str, Help("Images of the same classes that the model has not seen, as --data.")],
    source: ModelOptions,
    sampling: Annotated[SamplingSettings, Without("seed")],
    out: Out = Path("runs/judgment"),
    settings: JudgeSettings,
    run: Annotated[RunOptions, Without("dtype", "checkpoint_every", "log_with")],
) -> str:
    """Judge samples between floor and ceiling, and against copying.

    The same figures for samples, for validation images, for their reconstructions, for their codes shuffled within
    class and level, and for their mean colors, against the images of --data that the model was trained on: Fréchet
    distance, KID, precision, recall, how often a classifier that may choose among the model's classes only finds the
    right one, and the distance to the nearest training image. nearest.png shows samples beside those. Images of other
    classes are left out. Sample i has the seed --seed + i. Rerun the same command to resume an interrupted run.

    Examples:
        coda benchmark judge --data "train-*.parquet" --validation "val-*.parquet" --num-classes 1000
    """
    pipeline = open_pipeline(source, Placement(run.device), sampling)
    return ending_of(judge_pipeline(pipeline, source.model, data, validation, out, settings, run), out)


def judge_pipeline(
    pipeline: CodaPipeline,
    model: str,
    data: str | ImageSource,
    validation: str | ImageSource,
    out: Path,
    settings: JudgeSettings,
    run: RunOptions,
) -> Report:
    """`benchmarks.judge_generator` for a pipeline on its device, which the report calls `model`."""
    from coda.tokenizer.fingerprint import weights_digest

    known = pipeline.classes
    if not known.seen:
        raise CodaError(f"{model} knows no classes; coda benchmark gfid measures models without classes")
    names = {i: known[i].wnid or ", ".join(known[i].names) for i in known.seen}
    record = sampling_record(pipeline, model) | {"weights": weights_digest("", pipeline.transformer)}
    return benchmarks.judge_generator(
        sampler_of(pipeline), pipeline.tokenizer, data, validation, out, settings, run,
        names if any(names.values()) else None, record,
    )  # fmt: skip
