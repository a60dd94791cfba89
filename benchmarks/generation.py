"""Quality of samples against a reference: Fréchet distance, KID, precision, recall and Inception score."""

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

from .class_matching import class_warnings, match_classes
from .comparison import compare, extract_features, sample_size_warnings
from .features.extractors import FeatureExtractor, load_extractor, require_torch_fidelity
from .image_sets.adm_npz import write_npz
from .image_sets.image_set import ROUNDING, ImageSet, NpzSet, Size, SourceSet, open_image_set
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
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    balance: str = "uniform",
    size: Size | None = None,
    batch_size: int = 32,
    workers: int = 0,
    extractor: str | FeatureExtractor = "auto",
    sampling: Mapping[str, Any] | None = None,
    export_npz: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> Report:
    """Measure samples against a reference set, and write the report. Rerun the same call to resume an interrupted run.

    Args:
        samples: A callable (class indices, seeds) -> images (B, 3, H, W), float in [-1, 1] or uint8, where each image
            depends on its class and seed alone; or existing samples: a folder that `coda sample` made, anything that
            `open_images` takes, or an `.npz` with `arr_0`.
        reference: Images: anything that `open_images` takes, or an `.npz`. Inception statistics in an `.npz` (ADM's:
            `mu`, `sigma`, `mu_s`, `sigma_s`) are used if the extractor is Inception.
        out: Directory of the report.
        num_images: Number of samples; None takes all there are, or 50,000 from a callable.
        classes: Class indices to sample from a callable; None takes those of the reference's labels.
        class_names: Names or WordNet ids of the callable's classes, by index, to match them with the reference's. None
            takes the reference's labels as class indices.
        balance: "uniform" for the classes in turns, "drawn" for a random class per sample.
        size: Center crop of the reference in pixels, one number or (height, width); None takes the samples' size.
            Samples are not resized.
        batch_size: Images per batch.
        workers: Processes that decode.
        extractor: "auto", "inception", "efficientnet_lite0", or a `FeatureExtractor`.
        sampling: How the samples were made (guidance, steps, model fingerprint, …), for the report. An interrupted run
            of a callable is resumed if this is equal.
        export_npz: Also write `samples.npz` for ADM's evaluator.
        seed: Sample i has seed + i; also the seed for drawn classes, the draw of `num_images` and KID's subsets.
        device: Device of the extractor: "auto", "cpu" or "cuda".
        overwrite: Replace what `out` holds.
        strict: Raise an error for an image that cannot be read, instead of skipping it.

    Returns:
        The report: `report["fd_efficientnet_lite0"]` (or "fid"), …

    Raises:
        CodaError: If `out` holds something else, a set cannot be opened, the classes cannot be matched, or the
            extractor's weights are missing.
    """
    require_torch_fidelity()
    device = resolve_device(device)
    network = load_extractor(extractor, device)
    references = open_image_set(reference, size, None, seed, workers, strict, network.name == "inception")
    settings = {
        "reference": references.description,
        "wanted": {"num_images": num_images, "balance": balance, "seed": seed, "size": size},
        "extractor": network.name,
        "export_npz": export_npz,
    }
    images: ImageSet
    if callable(samples):
        chosen, how, warnings = _choose_classes_to_sample(classes, class_names, references)
        labels = choose_classes(chosen, STANDARD_COUNT if num_images is None else num_images, balance, seed)
        settings |= {"samples": dict(sampling) if sampling else model_identity(samples), "classes": chosen}
        run = RunDirectory(out, "generation benchmark", settings, overwrite)
        seeds = range(seed, seed + len(labels))
        images = SampleStore(run.path / "samples", labels, seeds, f"{balance}; classes {how}")
        if not run.complete:
            images.fill(samples, batch_size)
    else:
        images = open_image_set(samples, None, num_images, seed, workers, strict)
        warnings = class_warnings(_class_names_of(images), _class_names_of(references))
        run = RunDirectory(out, "generation benchmark", settings | {"samples": images.description}, overwrite)
    if run.complete:
        return Report.load(out)
    generated = extract_features(images, network, batch_size, "Features of samples", with_logits=True)
    if size is None:
        references.crop_to(generated.size)
    real = extract_features(references, network, batch_size, "Features of the reference")
    compared = compare(generated.features, real.features, references, network, seed)
    warnings += sample_size_warnings(compared.smallest, compared.dimensions, network.figure_names.distance)
    provenance = {
        "extractor": network.description,
        "self_check": f"{compared.self_check:.3g} (the reference against itself)",
        "samples": generated.description,
        "reference": real.description,
        "sampling": dict(sampling or {"guidance": "not given", "steps": "not given"}),
        "rounding": ROUNDING if callable(samples) else "none: the samples were uint8 already",
        "seed": seed,
        "batch_size": batch_size,
        **describe_run(device),
    }
    report = Report("Generation", compared.figures, provenance, warnings=warnings)

    def write(folder: Path) -> None:
        if export_npz:
            known = generated.labels if min(generated.labels) >= 0 else None
            batches = (pixels for pixels, _ in images.batches(batch_size))
            write_npz(folder / "samples.npz", batches, len(generated.labels), known)
        report.save(folder)

    run.finish(write)
    shutil.rmtree(run.path / "samples", ignore_errors=True)
    return report


def _choose_classes_to_sample(
    classes: Sequence[int] | None,
    class_names: Mapping[int, str] | Sequence[str] | None,
    reference: SourceSet | NpzSet,
) -> tuple[list[int], str, list[str]]:
    """Class indices to sample, how they were found, and warnings."""
    names = (
        None
        if class_names is None
        else dict(class_names if isinstance(class_names, Mapping) else enumerate(class_names))
    )
    if classes is None:
        return *match_classes(reference.labels(), reference.class_names, names), []
    known = [name for index in classes if (name := (names or {}).get(index))]
    return list(classes), "as given", class_warnings(known, _class_names_of(reference))


def choose_classes(classes: Sequence[int], count: int, balance: str, seed: int) -> list[int]:
    """The class of each of `count` samples.

    Args:
        classes: The classes to choose from.
        count: Number of samples.
        balance: "uniform" for the classes in turns, "drawn" for a random class per sample.
        seed: Seed for the draw.

    Raises:
        CodaError: If there are no classes, fewer than two samples, or `balance` is unknown.
    """
    if not classes or count < 2:
        raise CodaError(f"{count} samples of {len(classes)} classes: at least two samples and one class are needed")
    match balance:
        case "uniform":
            return [int(classes[i % len(classes)]) for i in range(count)]
        case "drawn":
            drawn = torch.randint(len(classes), (count,), generator=step_generator(seed, 0, "classes"))
            return [int(classes[i]) for i in drawn.tolist()]
    raise CodaError(f"unknown balance {balance!r}; choose uniform or drawn")


def _class_names_of(images: SourceSet | NpzSet) -> list[str]:
    """Names of the classes that have an image, as far as they are known."""
    names = images.class_names or ()
    return [names[label] for label in sorted(set(images.labels())) if 0 <= label < len(names)]
