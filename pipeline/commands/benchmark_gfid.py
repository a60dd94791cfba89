"""`coda benchmark gfid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from ..cli.arguments import Count, Device, Extractor, Natural, Precision, Seed, Unsplit, UsageError, Weight
from .output import ending_of


def gfid(
    *,
    reference: str,
    samples: str | None = None,
    model: str = "bundled",
    tokenizer: str | None = None,
    class_: Annotated[tuple[str, ...], Unsplit] = (),
    num_images: Count | None = None,
    balance: Literal["uniform", "drawn"] = "uniform",
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    out: Path = Path("runs/gfid"),
    size: Count | None = None,
    extractor: Extractor = "auto",
    export_npz: bool = False,
    batch_size: Count = 32,
    workers: Natural = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> str:
    """Quality of samples against a reference.

    Fréchet distance, KID, precision, recall and Inception score of images that a model samples (--model) or of existing
    samples (--samples), against a reference set. Rerun the same command to resume an interrupted run.

    Args:
        reference: Images, as for --data elsewhere, or an .npz such as ADM's.
        samples: Folder (such as that of coda sample) or .npz of samples; if not given, the model makes them.
        model: Generator directory, pipeline directory or hub id, or the word bundled.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator; runs/tokenizer if not given.
        class_: Classes to sample, as in coda sample; by default those of the reference, matched by name or WordNet id.
        num_images: Number of samples; by default all there are, or 50,000 from a model.
        balance: Classes in turns (uniform), or a random class per sample (drawn).
        steps: One number, distributed over the levels, or one per level; the model's if not given.
        guidance: Classifier-free guidance scale, 1 for none; the model's if not given.
        out: Directory of the report.
        size: Center crop of the reference in pixels; the size of the samples if not given.
        extractor: Feature extractor; auto is inception if its weights are installed.
        export_npz: Also write samples.npz for ADM's evaluator.
        batch_size: Images per batch.
        workers: Processes that decode.
        seed: Sample i has seed + i.
        device: auto, cpu, cuda, cuda:1.
        dtype: Precision of the model; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.
        strict: Stop at an image that cannot be read, instead of skipping it.

    Examples:
        coda benchmark gfid --model runs/generator --reference photographs --num-images 5000
        coda benchmark gfid --samples runs/samples --reference VIRTUAL_imagenet256_labeled.npz
    """
    from coda.benchmarks import generation_metrics

    from .model import find_classes, open_pipeline, sampler_of, settings_of

    sampling = None
    source: Any = samples
    classes, class_names = None, None
    if samples is None:
        pipeline = open_pipeline(model, tokenizer, device, dtype)
        source = sampler_of(pipeline, steps, guidance)
        sampling = settings_of(pipeline, model, steps, guidance)
        classes = find_classes(class_, pipeline.classes) or None
        if pipeline.classes.seen:
            class_names = {
                i: pipeline.classes[i].wnid or ", ".join(pipeline.classes[i].names) for i in pipeline.classes.seen
            }
        else:
            classes = [0]  # ignored by a model without classes
    else:
        flags = {"--tokenizer": tokenizer, "--class": class_ or None, "--steps": steps, "--guidance": guidance}
        if unused := [flag for flag, value in flags.items() if value is not None] + ["--model"] * (model != "bundled"):
            raise UsageError(f"{unused[0]} has no effect with --samples")
    report = generation_metrics(
        samples=source,
        reference=reference,
        out=out,
        num_images=num_images,
        classes=classes,
        class_names=class_names,
        balance=balance,
        size=size,
        batch_size=batch_size,
        workers=workers,
        extractor=extractor,
        sampling=sampling,
        export_npz=export_npz,
        seed=seed,
        device=device,
        overwrite=overwrite,
        strict=strict,
    )
    return ending_of(report, out)
