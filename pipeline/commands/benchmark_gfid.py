"""`coda benchmark gfid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from coda.generator.settings import SamplingSettings
from coda.tokenizer.foundation.settings import Count, Precision

from ..cli.arguments import Help, UsageError, Without
from .flags import BatchSize, Classes, MeasureOptions, ModelOptions, Out, Placement
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
    num_images: Annotated[
        Count | None, Help("Number of samples; by default all there are, or 50,000 from a model.")
    ] = None,
    balance: Annotated[
        Literal["uniform", "drawn"], Help("Classes in turns (uniform), or a random class per sample (drawn).")
    ] = "uniform",
    sampling: Annotated[SamplingSettings, Without("seed")],
    out: Out = Path("runs/gfid"),
    size: Annotated[
        Count | None, Help("Size of the reference images in pixels, center crop; by default the samples'.")
    ] = None,
    export_npz: Annotated[bool, Help("Also write samples.npz for ADM's evaluator.")] = False,
    batch_size: BatchSize = 32,
    dtype: Annotated[
        Precision, Help("Precision of the sampling; auto is bfloat16 on CUDA and float32 elsewhere.")
    ] = "auto",
    options: MeasureOptions,
) -> str:
    """Measure the quality of samples against a reference.

    Fréchet distance, KID, precision, recall and Inception score of images that a model samples (--model) or of existing
    samples (--samples), against a reference set. Without --class, the classes are those of the reference, matched by
    name or WordNet id. Sample i has the seed --seed + i. Rerun the same command to resume an interrupted run.

    Examples:
        coda benchmark gfid --model runs/generator --reference photos --num-images 5000
        coda benchmark gfid --samples runs/samples --reference VIRTUAL_imagenet256_labeled.npz
    """
    from coda.benchmarks import generation_metrics

    sampled: dict[str, Any] = {"samples": samples}
    if samples is None:
        pipeline = open_pipeline(source, Placement(options.device, dtype))
        known = pipeline.classes
        classes = find_classes(class_, known) or None
        sampled = {
            "samples": sampler_of(pipeline, sampling),
            "sampling": sampling_record(pipeline, source.model, sampling),
            "classes": classes if known.seen else [0],  # ignored by a model without classes
            "class_names": {i: known[i].wnid or ", ".join(known[i].names) for i in known.seen} or None,
        }
    elif unused := [
        name
        for name, value in {"class": class_ or None, **vars(source), **vars(sampling)}.items()
        if value not in (None, "bundled", 0)
    ]:
        raise UsageError(f"--{unused[0]} has no effect with --samples")
    report = generation_metrics(
        **sampled,
        reference=reference,
        out=out,
        num_images=num_images,
        balance=balance,
        size=size,
        batch_size=batch_size,
        export_npz=export_npz,
        **vars(options),
    )
    return ending_of(report, out)
