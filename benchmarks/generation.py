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
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.run_directory import RunDirectory

from .class_matching import class_warnings, match_classes
from .comparison import ExtractedFeatures, compare, extract_features, sample_size_warnings
from .features.extractors import FeatureExtractor, load_extractor, require_torch_fidelity
from .image_sets.adm_npz import write_npz
from .image_sets.image_set import ROUNDING, ImageSet, NpzSet, SourceSet, open_image_set
from .image_sets.sample_store import Sampler, SampleStore
from .reports.provenance import describe_run, model_identity
from .reports.report import Report
from .settings import GenerationSettings

STANDARD_COUNT = 50_000  # samples of a published figure (ADM)


def generation_metrics(
    samples: Sampler | str | Path | ImageSource,
    reference: str | Path | ImageSource,
    out: str | Path = "runs/generation-metrics",
    settings: GenerationSettings = GenerationSettings(),
    run: RunOptions = RunOptions(),
    classes: Sequence[int] | None = None,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Report:
    """Measure samples against a reference set, and write the report. Rerun the same call to resume an interrupted run.

    Args:
        samples: A callable (class indices, seeds) -> images (B, 3, H, W), float in [-1, 1] or uint8, where each image
            depends on its class and seed alone; or existing samples: a folder that `coda sample` made, anything that
            `open_images` takes, or an `.npz` with `arr_0`. Samples are not resized.
        reference: Images: anything that `open_images` takes, or an `.npz`. Inception statistics in an `.npz` (ADM's:
            `mu`, `sigma`, `mu_s`, `sigma_s`) are used if the extractor is Inception.
        out: Directory of the report.
        settings: What is measured.
        run: Device of the extractor, and workers.
        classes: Class indices to sample from a callable; None takes those of the reference's labels.
        class_names: Names or WordNet ids of the callable's classes, by index, to match them with the reference's. None
            takes the reference's labels as class indices.
        sampling: How the samples were made (guidance, steps, model fingerprint, …), for the report. An interrupted run
            of a callable is resumed if this is equal.

    Returns:
        The report: `report["fd_efficientnet_lite0"]` (or "fid"), …

    Raises:
        CodaError: If `out` holds something else, a set cannot be opened, the classes cannot be matched, or the
            extractor's weights are missing.
    """
    require_torch_fidelity()
    device = resolve_device(run.device)
    network = load_extractor(settings.extractor, device)
    references = open_image_set(reference, settings.size, None, settings, run, network.name == "inception")
    seed, num_images, balance = settings.seed, settings.num_images, settings.balance
    record = {
        "reference": references.description,
        "wanted": {"num_images": num_images, "balance": balance, "seed": seed, "size": settings.size},
        "extractor": network.name,
        "export_npz": settings.export_npz,
    }
    images: ImageSet
    if callable(samples):
        chosen, how, warnings = _choose_classes_to_sample(classes, class_names, references)
        labels = choose_classes(chosen, STANDARD_COUNT if num_images is None else num_images, balance, seed)
        record |= {"samples": dict(sampling) if sampling else model_identity(samples), "classes": chosen}
        directory = RunDirectory(out, "generation benchmark", record, run.overwrite)
        seeds = range(seed, seed + len(labels))
        images = SampleStore(directory.path / "samples", labels, seeds, f"{balance}; classes {how}")
        if not directory.complete:
            images.fill(samples, settings.batch_size)
    else:
        images = open_image_set(samples, None, num_images, settings, run)
        warnings = class_warnings(_class_names_of(images), _class_names_of(references))
        directory = RunDirectory(out, "generation benchmark", record | {"samples": images.description}, run.overwrite)
    if directory.complete:
        return Report.load(out)
    generated = extract_features(images, network, settings.batch_size, "Features of samples", with_logits=True)
    report = _report(generated, references, network, settings, warnings)
    report.provenance.update(describe_run(device))
    report.provenance["sampling"] = dict(sampling or {"guidance": "not given", "steps": "not given"})
    report.provenance["rounding"] = ROUNDING if callable(samples) else "none: the samples were uint8 already"

    def write(folder: Path) -> None:
        if settings.export_npz:
            known = generated.labels if min(generated.labels) >= 0 else None
            batches = (pixels for pixels, _ in images.batches(settings.batch_size))
            write_npz(folder / "samples.npz", batches, len(generated.labels), known)
        report.save(folder)

    directory.finish(write)
    shutil.rmtree(directory.path / "samples", ignore_errors=True)
    return report


def _report(
    generated: ExtractedFeatures,
    references: SourceSet | NpzSet,
    network: FeatureExtractor,
    settings: GenerationSettings,
    warnings: list[str],
) -> Report:
    """All figures of the samples against the reference."""
    if settings.size is None:
        references.crop_to(generated.size)
    real = extract_features(references, network, settings.batch_size, "Features of the reference")
    compared = compare(generated.features, real.features, references, network, settings.seed)
    warnings += sample_size_warnings(compared.smallest, compared.dimensions, network.figure_names.distance)
    provenance = {
        "extractor": network.description,
        "self_check": f"{compared.self_check:.3g} (the reference against itself)",
        "samples": generated.description,
        "reference": real.description,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
    }
    return Report("Generation", compared.figures, provenance, warnings=warnings)


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
        CodaError: If there are no classes, or fewer than two samples.
    """
    if not classes or count < 2:
        raise CodaError(f"{count} samples of {len(classes)} classes: at least two samples and one class are needed")
    if balance == "uniform":
        return [int(classes[i % len(classes)]) for i in range(count)]
    drawn = torch.randint(len(classes), (count,), generator=step_generator(seed, 0, "classes"))
    return [int(classes[i]) for i in drawn.tolist()]


def _class_names_of(images: SourceSet | NpzSet) -> list[str]:
    """Names of the classes that have an image, as far as they are known."""
    names = images.class_names or ()
    return [names[label] for label in sorted(set(images.labels())) if 0 <= label < len(names)]
