"""`coda benchmark gfid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from coda import benchmarks
from coda.benchmarks.settings import GenerationSettings
from coda.generator.settings import SamplingSettings
from coda.tokenizer.foundation.settings import Precision
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, UsageError, Without
from .flags import Classes, ModelOptions, Out, Placement
from .model import find_classes, open_pipeline, sampler_of, sampling_record
from .output import ending_of


def gfid(
    *,
    reference: Annotated[str, Help("Images (as --data elsewhere), or an .npz such as ADM's.")],
    samples: Annotated[
        str | None, Help("Folder (such as that of coda sample) or .npz of samples; by default the model makes them.")
    ] = None,
    source: ModelOptions,
    class_: Classes = (),
    sampling: Annotated[SamplingSettings, Without("seed")],
    out: Out = Path("runs/gfid"),
    dtype: Annotated[
        Precision, Help("Precision of the sampling; auto is bfloat16 on CUDA and float32 elsewhere.")
    ] = "auto",
    settings: GenerationSettings,
    run: Annotated[RunOptions, Without("dtype", "checkpoint_every", "log_with")],
) -> str:
    """Measure the quality of samples against a reference.

    Fréchet distance, KID, precision, recall and Inception score of images that a model samples (--model) or of existing
    samples (--samples), against a reference set. Without --class, the classes are those of the reference, matched by
    name or WordNet id. Sample i has the seed --seed + i. Rerun the same command to resume an interrupted run.

    Examples:
        coda benchmark gfid --model runs/generator --reference photos --num-images 5000
        coda benchmark gfid --samples runs/samples --reference VIRTUAL_imagenet256_labeled.npz
    """
    sampled: dict[str, Any] = {"samples": samples}
    if samples is None:
        pipeline = open_pipeline(source, Placement(run.device, dtype), sampling)
        known = pipeline.classes
        classes = find_classes(class_, known) or None
        sampled = {
            "samples": sampler_of(pipeline),
            "sampling": sampling_record(pipeline, source.model),
            "classes": classes if known.seen else [0],  # ignored by a model without classes
            "class_names": {i: known[i].wnid or ", ".join(known[i].names) for i in known.seen} or None,
        }
    elif unused := [
        name
        for name, value in {"class": class_ or None, **vars(source), **vars(sampling)}.items()
        if value not in (None, "bundled", 0)
    ]:
        raise UsageError(f"--{unused[0]} has no effect with --samples")
    report = benchmarks.generation_metrics(**sampled, reference=reference, out=out, settings=settings, run=run)
    return ending_of(report, out)
