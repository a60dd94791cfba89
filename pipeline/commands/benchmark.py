"""`coda benchmark rfid`, `gfid`, `ablation`, `speed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..arguments import Count, Device, Natural, Precision, Range, Seed, Side, Unsplit, UsageError, Weight

if TYPE_CHECKING:
    import torch

    from coda.benchmarks.report import Report
    from coda.benchmarks.sample_store import Sampler

    from ..classes import ClassTable

Extractor = Literal["auto", "inception", "efficientnet_lite0"]
Shape = Literal["small", "kl16", "flux"]
Timed = Literal["all", "quantizer", "tokenize"]


def rfid(
    *,
    data: str,
    tokenizer: str = "runs/tokenizer",
    vae: str | None = None,
    out: Path = Path("runs/rfid"),
    size: Count | None = None,
    limit: Count | None = None,
    extractor: Extractor = "auto",
    batch_size: Count = 32,
    workers: Natural = 0,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> str:
    """How well a tokenizer gives photographs back.

    PSNR, SSIM, Fréchet distance, KID, and how much of the codebook each level uses. Inception gives the published
    metric where its weights are; efficientnet_lite0 needs no download and gives fd_efficientnet_lite0.

    Args:
        data: Photographs: ImageFolder, folder, WebDataset tars or parquet; DIR[650:] takes a part.
        tokenizer: Tokenizer directory or hub id.
        vae: A continuous VAE, whose own reconstructions are measured beside the tokenizer's.
        out: Directory of the report.
        size: Pixels each way, centre crop; the tokenizer's own if not given.
        limit: Measure at most that many pictures, drawn by --seed.
        extractor: What compares the pictures; auto is inception where its weights are.
        batch_size: Pictures at a time.
        workers: Processes that decode.
        seed: Of the drawing and of KID's subsets.
        device: auto, cpu, cuda, cuda:1.
        overwrite: Replace what --out holds.
        strict: Stop at a broken picture instead of leaving it out.

    Examples:
        coda benchmark rfid --data photographs --limit 5000
    """
    from coda.benchmarks import reconstruction_metrics
    from coda.tokenizer import load_vae

    report = reconstruction_metrics(
        tokenizer=tokenizer,
        data=data,
        out=out,
        size=size,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        continuous=None if vae is None else load_vae(vae),
        extractor=extractor,
        seed=seed,
        device=device,
        overwrite=overwrite,
        strict=strict,
    )
    return ending_of(report, out)


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


def ablation(
    *,
    data: str,
    vae: str = "runs/vae",
    test_data: str | None = None,
    out: Path = Path("runs/ablation"),
    size: Count = 256,
    sides: tuple[Side, ...] | None = None,
    codebook_size: Annotated[int, Range(2)] = 4096,
    levels: tuple[Count, ...] | None = None,
    steps: Natural = 200,
    batch_size: Count = 8,
    lora_rank: Natural = 32,
    limit: Count | None = None,
    workers: Natural = 0,
    extractor: Extractor = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> str:
    """What each idea brings: direct VQ, residual levels, attention, LoRA.

    The paper's ablation on your own pictures, and its sweep over the number of levels. Finished rungs are kept: an
    interrupted run goes on with the same command.

    Args:
        data: Photographs to adapt on: ImageFolder, folder, WebDataset tars or parquet; DIR[:650] takes a part.
        vae: The continuous VAE.
        test_data: Photographs to measure on; those of --data if not given, and the report says so.
        out: Directory of the report; each rung's tokenizer and figures lie under rungs/.
        size: Pixels each way, centre crop.
        sides: Sides of the levels, smallest first (1,2,4,8 or 1x2,2x4); chosen by the latent's size if not given.
        codebook_size: Number of codes.
        levels: Numbers of levels of the sweep; 1, 2, 4, ... and all if not given.
        steps: Training steps of the rungs that train.
        batch_size: Pictures at a time.
        lora_rank: Of the last rung.
        limit: Measure on at most that many pictures, drawn by --seed.
        workers: Processes that decode.
        extractor: What compares the pictures; auto is inception where its weights are.
        seed: Of everything.
        device: auto, cpu, cuda, cuda:1.
        overwrite: Replace what --out holds.
        strict: Stop at a broken picture instead of leaving it out.

    Examples:
        coda benchmark ablation --vae runs/vae --data "photographs[:650]" --test-data "photographs[650:]" --size 64
    """
    from coda.benchmarks import ablation as run

    report = run(
        vae=vae,
        data=data,
        test_data=test_data,
        out=out,
        size=size,
        sides=sides,
        codebook_size=codebook_size,
        levels=levels,
        steps=steps,
        batch_size=batch_size,
        lora_rank=lora_rank,
        limit=limit,
        workers=workers,
        extractor=extractor,
        seed=seed,
        device=device,
        overwrite=overwrite,
        strict=strict,
    )
    return ending_of(report, out)


def speed(
    *,
    what: Timed = "all",
    tokenizer: str | None = None,
    data: str | None = None,
    limit: Count | None = None,
    model: str | None = None,
    shapes: tuple[Shape, ...] | None = None,
    codebook_sizes: tuple[Count, ...] | None = None,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    out: Path = Path("runs/speed"),
    size: Count | None = None,
    batch_size: Count | None = None,
    workers: Natural | None = None,
    repeats: Count = 3,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Seconds and memory: the quantizer against a dense one, a tokenizer, a sampler.

    Args:
        what: all times the parts; quantizer times dense, tiled and fused ones over codebook sizes; tokenize times
            tokenize-dataset on --data against what the machine would allow and against a plain loop.
        tokenizer: Tokenizer to time; with --model, the one that belongs to a generator.
        data: Photographs for --what tokenize.
        limit: Take only so many of them, the first.
        model: Generator directory, pipeline directory or hub id, or the word bundled, to time sampling.
        shapes: Quantizers to compare with a dense one; for --what quantizer those of the paper if not given, else all.
        codebook_sizes: Codebooks for --what quantizer; 4,096 to 262,144 if not given.
        steps: Steps of sampling, as in coda sample; the model's if not given.
        guidance: Guidance of sampling; the model's if not given.
        out: Directory of the report.
        size: Pixels each way for the tokenizer; its own if not given.
        batch_size: Pictures at a time; 4, or 32 for --what tokenize.
        workers: Processes that decode for --what tokenize; 0 if not given.
        repeats: Repetitions; the fastest counts.
        seed: Of the random latents, images and samples.
        device: auto, cpu, cuda, cuda:1.
        dtype: Precision of the sampling, or of the VAE for --what tokenize; auto is bfloat16 on CUDA and float32
            elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda benchmark speed --shapes small
        coda benchmark speed --what quantizer --shapes kl16 --codebook-sizes 4096,16384
        coda benchmark speed --what tokenize --tokenizer runs/tokenizer --data photographs --limit 5000
    """
    sampling = {"--model": model, "--steps": steps, "--guidance": guidance, "--size": size}
    loading = {"--data": data, "--limit": limit, "--workers": workers}
    if what == "quantizer":
        _refuse(
            "has no use with --what quantizer",
            sampling | loading | {"--tokenizer": tokenizer, "--batch-size": batch_size},
        )
        return _speed_of_quantizer(shapes, codebook_sizes, out, repeats, seed, device, overwrite)
    if what == "tokenize":
        _refuse("has no use with --what tokenize", sampling | {"--shapes": shapes, "--codebook-sizes": codebook_sizes})
        return _speed_of_tokenizing(
            tokenizer, data, out, limit, batch_size or 32, workers or 0, repeats, device, dtype, overwrite
        )
    _refuse("is for --what tokenize", loading)
    _refuse("is for --what quantizer", {"--codebook-sizes": codebook_sizes})
    from coda.benchmarks import speed as run
    from coda.benchmarks.quantizing import QUANTIZER_SHAPES
    from coda.tokenizer import CodaTokenizer

    from .model import open_pipeline, sampler_of

    if model is None and (steps is not None or guidance is not None):
        raise UsageError("--steps and --guidance are about sampling: give --model too")
    timed, sampler = None, None
    if model is not None:
        pipeline = open_pipeline(model, tokenizer, device, dtype)
        timed, sampler = pipeline.tokenizer, sampler_of(pipeline, steps, guidance)
    elif tokenizer is not None:
        timed = CodaTokenizer.from_pretrained(tokenizer)
    report = run(
        tokenizer=timed,
        samples=sampler,
        out=out,
        shapes=[shape for shape in QUANTIZER_SHAPES if shapes is None or shape.name in shapes],
        size=size,
        batch_size=batch_size or 4,
        repeats=repeats,
        seed=seed,
        device=device,
        overwrite=overwrite,
    )
    return ending_of(report, out)


def _refuse(why: str, flags: Mapping[str, object]) -> None:
    """Refuse flags that were given and would not be read."""
    for flag, value in flags.items():
        if value is not None:
            raise UsageError(f"{flag} {why}")


def _speed_of_quantizer(
    shapes: tuple[Shape, ...] | None,
    codebook_sizes: tuple[int, ...] | None,
    out: Path,
    repeats: int,
    seed: int,
    device: str,
    overwrite: bool,
) -> str:
    from coda.benchmarks import quantizer_speed
    from coda.benchmarks.quantizing import CODEBOOK_SIZES, PUBLISHED_SHAPES, QUANTIZER_SHAPES

    chosen = PUBLISHED_SHAPES if shapes is None else [shape for shape in QUANTIZER_SHAPES if shape.name in shapes]
    report = quantizer_speed(out, chosen, codebook_sizes or CODEBOOK_SIZES, repeats, seed, device, overwrite)
    return ending_of(report, out)


def _speed_of_tokenizing(
    tokenizer: str | None,
    data: str | None,
    out: Path,
    limit: int | None,
    batch_size: int,
    workers: int,
    repeats: int,
    device: str,
    dtype: str,
    overwrite: bool,
) -> str:
    from coda.benchmarks import tokenizing_speed

    if tokenizer is None or data is None:
        raise UsageError("--what tokenize needs --tokenizer and --data")
    report = tokenizing_speed(tokenizer, data, out, limit, batch_size, workers, repeats, device, dtype, overwrite)
    return ending_of(report, out)


def _only_of(classes: ClassTable, draw: Sampler) -> Sampler:
    """`draw`, refusing the classes of a reference that the model has never seen: their pictures would mean nothing."""

    def sample(labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        classes.find_all(set(labels))
        return draw(labels, seeds)

    return sample


def ending_of(report: Report, out: Path) -> str:
    """The report, and as the last line what was made and where."""
    return f"{report.to_markdown()}\nMade the report in {out}: report.md and report.json"
