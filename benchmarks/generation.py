"""How good sampled pictures are: Fréchet distance, KID, precision, recall and Inception score against a reference."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.seeding import step_generator
from coda.tokenizer.images import ImageSource
from coda.tokenizer.training.run_directory import RunDirectory

from .comparison import Comparison, compare, sample_size_warnings
from .features.extractors import FeatureExtractor, load_extractor, require_torch_fidelity
from .image_sets.adm_npz import write_npz
from .image_sets.image_set import ROUNDING, NpzSet, PictureSet, Size, SourceSet, look_at, open_picture_set
from .image_sets.sample_store import Sampler, SampleStore
from .reports.provenance import describe_run, model_identity
from .reports.report import Report

STANDARD_COUNT = 50_000  # samples of a published figure (ADM)


def generation_metrics(
    samples: Sampler | str | Path | ImageSource,
    reference: str | Path | ImageSource,
    out: str | Path = "runs/generation-metrics",
    num_images: int | None = None,
    classes: Sequence[int] | None = None,
    balance: str = "uniform",
    size: Size | None = None,
    batch_size: int = 32,
    workers: int = 0,
    extractor: str | FeatureExtractor = "auto",
    sampling: Mapping[str, Any] | None = None,
    export_npz: bool = False,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> Report:
    """Measure samples against a reference set, and write the report.

    Args:
        samples: A callable (class indices, seeds) -> images (B, 3, H, W), float in [-1, 1] or uint8, whose pictures
            depend on class and seed alone; or a folder of pictures, an image source, or an `.npz` with `arr_0`.
        reference: A folder, an image source, or an `.npz`. ADM's brings Inception statistics of a larger set (`mu`,
            `sigma`, `mu_s`, `sigma_s`), which are used where the extractor is Inception.
        out: Directory of the report.
        num_images: How many samples; None takes all there are, and 50,000 from a callable.
        classes: Class indices that a callable is asked for; None takes those of the reference's labels.
        balance: "uniform", the classes in turns; or "drawn", each at random.
        size: Pixels, one number or (height, width), of the reference's centre crop; None takes the samples' size, which
            is never changed.
        batch_size: Pictures at once.
        workers: Processes that decode.
        extractor: "auto", "inception", "efficientnet_lite0", or a `FeatureExtractor`.
        sampling: What made the samples, printed beside the figures: guidance, steps, model fingerprint, … A callable
            with the same `sampling` goes on where an interrupted run of it stopped.
        export_npz: Also write `samples.npz` for ADM's evaluator.
        seed: Image i has seed + i; also of the drawn classes, of the draw of `num_images` and of KID's subsets.
        device: Where the extractor runs: "auto", "cpu" or "cuda".
        overwrite: Replace what `out` holds.
        strict: A broken picture is an error; else it is left out and counted.

    Returns:
        The report: `report["fd_efficientnet_lite0"]` (or "fid"), …

    Raises:
        CodaError: `out` holds something else, a set cannot be opened, the classes are not known, or the extractor's
            weights are missing.
    """
    require_torch_fidelity()
    place = resolve_device(device)
    network = load_extractor(extractor, place)
    references = open_picture_set(reference, size, None, seed, workers, strict, network.name == "inception")
    if not callable(samples):
        pictures: PictureSet = open_picture_set(samples, None, num_images, seed, workers, strict)
    settings = {
        "samples": _identity(samples, sampling) if callable(samples) else pictures.description,
        "reference": references.description,
        "wanted": {"num_images": num_images, "classes": classes, "balance": balance, "seed": seed, "size": size},
        "extractor": network.name,
        "export_npz": export_npz,
    }
    run = RunDirectory(out, "generation benchmark", settings, overwrite)
    if run.complete:
        return Report.load(out)
    store = run.path / "samples"
    if callable(samples):
        wanted = classes if classes is not None else _classes_of(references)
        labels = choose_classes(wanted, STANDARD_COUNT if num_images is None else num_images, balance, seed)
        pictures = SampleStore(store, labels, range(seed, seed + len(labels)), balance)
        pictures.fill(samples, batch_size)
    generated = look_at(pictures, network, batch_size, "Looking at samples", with_logits=True)
    if size is None:
        references.crop_to(generated.size)
    real = look_at(references, network, batch_size, "Looking at the reference")
    compared = compare(generated.features, real.features, references, network, seed)
    measurement = {
        "samples": generated.description,
        "reference": real.description,
        "sampling": dict(sampling or {"guidance": "not given", "steps": "not given"}),
        "rounding": ROUNDING if callable(samples) else "none: the samples were uint8 already",
        "seed": seed,
        "batch_size": batch_size,
        **describe_run(place),
    }
    report = _report(compared, network, measurement)

    def write(folder: Path) -> None:
        if export_npz:
            known = generated.labels if min(generated.labels) >= 0 else None
            batches = (images for images, _ in pictures.batches(batch_size))
            write_npz(folder / "samples.npz", batches, len(generated.labels), known)
        report.save(folder)

    run.finish(write)
    shutil.rmtree(store, ignore_errors=True)
    return report


def _report(compared: Comparison, extractor: FeatureExtractor, measurement: dict[str, Any]) -> Report:
    return Report(
        title="Generation",
        figures=compared.figures,
        warnings=sample_size_warnings(compared.smallest, compared.dimensions, extractor.figure_names.distance),
        provenance={
            "extractor": extractor.description,
            "self_check": f"{compared.self_check:.3g} (the reference against itself)",
            **measurement,
        },
    )


def choose_classes(classes: Sequence[int], count: int, balance: str, seed: int) -> list[int]:
    """The class of each of `count` samples.

    Args:
        classes: The classes to choose from.
        count: How many samples.
        balance: "uniform" goes through the classes in turns; "drawn" draws each by `seed`.
        seed: Of the draw.

    Raises:
        CodaError: No classes, no samples, or another `balance`.
    """
    if not classes or count < 2:
        raise CodaError(f"{count} samples of {len(classes)} classes: two samples and one class are the least")
    match balance:
        case "uniform":
            return [int(classes[i % len(classes)]) for i in range(count)]
        case "drawn":
            drawn = torch.randint(len(classes), (count,), generator=step_generator(seed, 0, "classes"))
            return [int(classes[i]) for i in drawn.tolist()]
    raise CodaError(f"balance {balance!r} is not known; it is uniform or drawn")


def _classes_of(reference: SourceSet | NpzSet) -> list[int]:
    """The classes that the reference's labels name."""
    found = sorted({label for label in reference.labels() if label >= 0})
    if not found:
        raise CodaError(f"{reference.description['set']}: no labels to take the classes from; give classes")
    return found


def _identity(sampler: Sampler, sampling: Mapping[str, Any] | None) -> Any:
    """What tells a callable's samples from others: what they are made with, where that was said."""
    return dict(sampling) if sampling else model_identity(sampler)
