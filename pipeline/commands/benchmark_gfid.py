"""`coda benchmark gfid`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..cli.arguments import Count, Device, Extractor, Natural, Precision, Seed, Unsplit, UsageError, Weight
from .output import ending_of

if TYPE_CHECKING:
    import torch

    from coda.benchmarks.image_sets.sample_store import Sampler

    from ..classes import ClassTable


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
    """How good sampled pictures are.

    Fréchet distance, KID, precision, recall and Inception score of a model's pictures (--model) or of pictures that
    are there already (--samples), against a reference set. An interrupted run goes on with the same command.

    Args:
        reference: Photographs (as --data elsewhere), or an .npz such as ADM's.
        samples: Folder or .npz of pictures to measure; without it the model makes them.
        model: Generator directory, pipeline directory or hub id, or the word bundled.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator; runs/tokenizer if not given.
        class_: Classes to sample, as in coda sample; those of the reference if not given, which the model must know.
        num_images: How many samples; all there are, or 50,000 from a model, if not given.
        balance: Classes in turns (uniform), or each at random (drawn).
        steps: One number, shared out over the levels, or one per level; the model's if not given.
        guidance: Classifier-free guidance, 1 is none; the model's if not given.
        out: Directory of the report.
        size: Pixels each way of the reference's centre crop; the samples' size if not given.
        extractor: What compares the pictures; auto is inception where its weights are.
        export_npz: Also write samples.npz for ADM's evaluator.
        batch_size: Pictures at a time.
        workers: Processes that decode.
        seed: Picture i has seed + i.
        device: auto, cpu, cuda, cuda:1.
        dtype: Precision of the sampling; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.
        strict: Stop at a broken picture instead of leaving it out.

    Examples:
        coda benchmark gfid --model runs/generator --reference photographs --num-images 5000
        coda benchmark gfid --samples runs/samples --reference VIRTUAL_imagenet256_labeled.npz
    """
    from coda.benchmarks import generation_metrics

    from .model import find_classes, open_pipeline, sampler_of, settings_of

    sampling = None
    source: Any = samples
    classes = None
    if samples is None:
        pipeline = open_pipeline(model, tokenizer, device, dtype)
        draw = sampler_of(pipeline, steps, guidance)
        sampling = settings_of(pipeline, model, steps, guidance)
        classes = find_classes(class_, pipeline.classes) or None
        if pipeline.classes.seen:
            source = _only_of(pipeline.classes, draw)
        else:
            source, classes = draw, [0]  # one class for all, which nothing reads
    elif unused := [
        flag
        for flag, given in (
            ("--model", model != "bundled"),
            ("--tokenizer", tokenizer is not None),
            ("--class", bool(class_)),
            ("--steps", steps is not None),
            ("--guidance", guidance is not None),
        )
        if given
    ]:
        raise UsageError(f"{unused[0]} has no use beside --samples, whose pictures are made already")
    report = generation_metrics(
        samples=source,
        reference=reference,
        out=out,
        num_images=num_images,
        classes=classes,
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


def _only_of(classes: ClassTable, draw: Sampler) -> Sampler:
    """`draw`, refusing the classes of a reference that the model has never seen: their pictures would mean nothing."""

    def sample(labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        classes.find_all(set(labels))
        return draw(labels, seeds)

    return sample
