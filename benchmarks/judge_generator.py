"""Judge a class-conditional generator: samples between floor and ceiling, and beside the images it learned from.

A distance alone does not say whether samples are good. So the same figures are measured on real images that the
generator has not seen (the floor), on the tokenizer's reconstructions of them (the best that codes can do), on their
codes shuffled within class and level, and on their mean colors (the ceiling).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from coda.tokenizer import CodeLayout
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import step_generator
from coda.tokenizer.images import ImageSource, open_images, to_pil, to_uint8, to_unit
from coda.tokenizer.images.grid import labelled_grid
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.run_directory import RunDirectory

from .comparison import extract_features
from .features.distances import FeatureSet, nearest_neighbors
from .features.extractors import FeatureExtractor, load_extractor, require_torch_fidelity
from .generation import choose_classes
from .image_sets.known_images import KnownImages
from .image_sets.sample_store import Sampler, SampleStore
from .judge_report import Judged, judgment_report, shown_class
from .reports.provenance import describe_run, model_identity
from .reports.report import Report
from .settings import JudgeSettings

NEAREST = "nearest.png"
_PAIRS_PER_ROW = 4  # of NEAREST


def judge_generator(
    sampler: Sampler,
    tokenizer: Any,
    data: str | Path | ImageSource,
    validation: str | Path | ImageSource,
    out: str | Path = "runs/judgment",
    settings: JudgeSettings = JudgeSettings(),
    run: RunOptions = RunOptions(),
    class_names: Mapping[int, str] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Report:
    """Judge a generator, and write the report with a picture of samples beside their nearest training images.

    Rerun the same call to resume an interrupted run. Images of classes that the generator does not know are left out.

    Args:
        sampler: (class indices, seeds) -> images (B, 3, H, W), float in [-1, 1], where each image depends on its class
            and seed alone.
        tokenizer: What decodes the samples: `encode(images) -> codes`, `decode(codes) -> images`, `layout` and `size`.
        data: The images that the generator was trained on, as `open_images` takes them: the reference.
        validation: Images of the same classes that it has not seen.
        out: Directory of the report.
        settings: What is measured.
        run: Device of the extractor and of the tokenizer, and workers.
        class_names: Names or WordNet ids of the classes to sample, by index, to match them with those of the images and
            of the classifier. None takes the labels of `data`.
        sampling: How the samples are made (model, guidance, steps, …), for the report. An interrupted run is resumed if
            this is equal.

    Returns:
        The report: `report["fd_efficientnet_lite0"]`, `report["right_class_of_reconstructions"]`, …

    Raises:
        CodaError: If `out` holds something else, a set cannot be opened, or a class has no image in it.
    """
    require_torch_fidelity()
    device = resolve_device(run.device)
    network = load_extractor(settings.extractor, device)
    learned, unseen = (
        KnownImages(open_images(place, settings.max_pixels, settings.num_classes), class_names, tokenizer.size, run)
        for place in (data, validation)
    )
    classes = sorted(class_names or set(learned.labels()))
    record = {
        "samples": dict(sampling) if sampling else model_identity(sampler),
        "tokenizer": model_identity(tokenizer),
        "classes": classes,
        "training images": learned.description,
        "validation images": unseen.description,
        "wanted": {"num_images": settings.num_images, "shown": settings.shown, "seed": settings.seed},
        "extractor": network.name,
    }
    directory = RunDirectory(out, "generator benchmark", record, run.overwrite)
    if directory.complete:
        return Report.load(out)
    labels = choose_classes(classes, settings.num_images, "uniform", settings.seed)
    seeds = range(settings.seed, settings.seed + len(labels))
    store = SampleStore(directory.path / "samples", labels, seeds, "uniform")
    store.fill(sampler, settings.batch_size)
    sampled = extract_features(store, network, settings.batch_size, "Features of samples", with_logits=True)
    real = extract_features(learned, network, settings.batch_size, "Features of the training images")
    kinds = [Judged("samples", sampled.features, sampled.labels)]
    kinds += _between_floor_and_ceiling(unseen, tokenizer, network, settings, device)

    report = judgment_report(kinds, real.features.pooled, network, settings.seed, class_names)
    report.provenance.update(record | {"training images": real.description, "extractor": network.description})
    report.provenance.update(describe_run(device))
    distances, places = nearest_neighbors(sampled.features.pooled[: settings.shown], real.features.pooled)
    pixels, shown = next(store.batches(settings.shown))

    def write(folder: Path) -> None:
        report.save(folder)
        words = [shown_class(label, class_names) for label in shown.tolist()]
        pairs_grid(pixels, words, learned.pixels(places), distances).save(folder / NEAREST)

    directory.finish(write)
    shutil.rmtree(directory.path / "samples", ignore_errors=True)
    return report


def _between_floor_and_ceiling(
    unseen: KnownImages, tokenizer: Any, network: FeatureExtractor, settings: JudgeSettings, device: torch.device
) -> list[Judged]:
    """Real images, their reconstructions, images of their shuffled codes, and their mean colors."""
    codes: list[torch.Tensor] = []
    reconstructions, shuffled, colors = (FeatureSet(with_logits=True) for _ in range(3))

    def decode(batch: torch.Tensor) -> torch.Tensor:
        return to_uint8(tokenizer.decode(batch.to(device)).float()).cpu()

    def on_batch(pixels: torch.Tensor) -> dict[str, float]:
        codes.append(tokenizer.encode(to_unit(pixels.to(device))).cpu())
        reconstructions.append(network(decode(codes[-1])))
        means = pixels.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
        colors.append(network(means.expand_as(pixels)))
        return {}

    with torch.inference_mode():
        title = "Features of the validation images"
        real = extract_features(unseen, network, settings.batch_size, title, with_logits=True, on_batch=on_batch)
        mixed = shuffle_codes(torch.cat(codes), torch.tensor(real.labels), tokenizer.layout, settings.seed)
        with progress("Features of shuffled codes", total=len(mixed), unit="images") as bar:
            for batch in mixed.split(settings.batch_size):
                shuffled.append(network(decode(batch)))
                bar.advance(len(batch))
    return [
        Judged("validation images", real.features, real.labels),
        Judged("their reconstructions", reconstructions, real.labels),
        Judged("their codes, shuffled within class and level", shuffled, real.labels),
        Judged("their mean colors", colors, real.labels),
    ]


def pairs_grid(
    samples: torch.Tensor, words: Sequence[str], neighbors: torch.Tensor, distances: torch.Tensor
) -> Image.Image:
    """Samples (N, 3, H, W) uint8, under their class in words, each beside its neighbor and the distance to it."""
    images = [to_pil(to_unit(image)) for pair in zip(samples, neighbors, strict=True) for image in pair]
    labels = [label for word, gap in zip(words, distances, strict=True) for label in (word, f"nearest, at {gap:.3g}")]
    return labelled_grid(images, labels, columns=2 * _PAIRS_PER_ROW)


def shuffle_codes(codes: torch.Tensor, labels: torch.Tensor, layout: CodeLayout, seed: int) -> torch.Tensor:
    """Codes (N, T) whose every level is shuffled, over all cells of all images of the same class (`labels` (N,))."""
    generator = step_generator(seed, 0, "shuffled codes")
    levels = [level.clone() for level in layout.split(codes)]
    for level in levels:
        for label in labels.unique():
            rows = labels == label
            pool = level[rows]
            order = torch.randperm(pool.numel(), generator=generator)
            level[rows] = pool.flatten()[order].view_as(pool)
    return layout.join(levels)
