"""How well a tokenizer gives pictures back: PSNR, SSIM, Fréchet distance, KID, and how much of the codebook it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer import CodaTokenizer
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import ImageSource, to_uint8, to_unit
from coda.tokenizer.images.psnr_ssim import psnr, ssim
from coda.tokenizer.training.run_directory import RunDirectory

from .comparison import sample_size_warnings
from .features.distances import FeatureSet, Statistics, frechet_distance, kernel_distance
from .features.extractors import FeatureExtractor, load_extractor, require_torch_fidelity
from .image_sets.image_set import ROUNDING, Size, describe_seen, open_picture_set
from .reports.plots import Plot
from .reports.provenance import describe_run, model_identity
from .reports.report import Figure, Report, Table
from .usage import CodeUsage, LevelUsage

Reconstruct = Callable[[torch.Tensor], torch.Tensor]


class _Reconstructed:
    """What is gathered about one way of reconstructing: pair figures and features."""

    def __init__(self, reconstruct: Reconstruct) -> None:
        self.reconstruct = reconstruct
        self.features = FeatureSet()
        self.psnr: list[torch.Tensor] = []
        self.ssim: list[torch.Tensor] = []

    def update(self, images: torch.Tensor, device: torch.device, extractor: FeatureExtractor) -> None:
        """Reconstruct images (B, 3, H, W) uint8 and compare."""
        found = to_uint8(self.reconstruct(to_unit(images).to(device)).float()).cpu()
        self.psnr.append(psnr(images, found))
        self.ssim.append(ssim(images, found))
        self.features.append(extractor(found))

    def figures(
        self, prefix: str, extractor: FeatureExtractor, original: FeatureSet, stats: Statistics, seed: int
    ) -> list[Figure]:
        """All figures, with `prefix` before their names."""
        names = extractor.figure_names
        distance = frechet_distance(Statistics.of(self.features.pooled), stats)
        kid = kernel_distance(self.features.pooled, original.pooled, seed)
        found = [
            _mean_figure(f"{prefix}psnr", torch.cat(self.psnr), "dB", "mean over pictures, uint8"),
            _mean_figure(f"{prefix}ssim", torch.cat(self.ssim), "", "Gaussian window 11×11, σ 1.5, RGB, uint8"),
            Figure(f"{prefix}{names.distance}", distance, note="against the originals"),
            Figure(f"{prefix}{names.kid}", kid.mean, spread=kid.spread, note=kid.how),
        ]
        return found


def reconstruction_metrics(
    tokenizer: Any,
    data: str | Path | ImageSource,
    out: str | Path = "runs/reconstruction-metrics",
    size: Size | None = None,
    batch_size: int = 32,
    workers: int = 0,
    limit: int | None = None,
    continuous: Any = None,
    extractor: str | FeatureExtractor = "auto",
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> Report:
    """Measure reconstructions of photographs, and write the report.

    Args:
        tokenizer: A tokenizer directory; anything with `encode(images) -> codes` and `decode(codes) -> images` (usage
            is reported where it also has a `layout`); or a callable images → images. Images are (B, 3, H, W) in
            [-1, 1].
        data: Photographs: a path that `open_images` opens, or an image source.
        out: Directory of the report.
        size: Pixels, one number or (height, width), of the centre crop; None takes the tokenizer's own size, and where
            it has none the pictures as they are.
        batch_size: Pictures at once.
        workers: Processes that decode.
        limit: Measure at most that many pictures, drawn by `seed`.
        continuous: The continuous VAE, with `encode` and `decode`, or a callable images → images: its own
            reconstructions are measured beside the tokenizer's.
        extractor: "auto", "inception", "efficientnet_lite0", or a `FeatureExtractor`.
        seed: Of the drawing and of KID's subsets.
        device: "auto", "cpu" or "cuda"; models that are modules are moved there.
        overwrite: Replace what `out` holds.
        strict: A broken picture is an error; else it is left out and counted.

    Returns:
        The report: `report["psnr"]`, `report["fd_efficientnet_lite0"]` (or "fid"), …

    Raises:
        CodaError: `out` holds something else, the pictures cannot be opened or differ in size, or the extractor's
            weights are missing.
    """
    require_torch_fidelity()
    place = resolve_device(device)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    pictures = open_picture_set(
        data, getattr(tokenizer, "size", None) if size is None else size, limit, seed, workers, strict
    )
    network = load_extractor(extractor, place)
    settings = {
        "tokenizer": model_identity(tokenizer),
        "continuous": None if continuous is None else model_identity(continuous),
        "data": pictures.description,
        "seed": seed,
        "extractor": network.name,
    }
    run = RunDirectory(out, "reconstruction benchmark", settings, overwrite)
    if run.complete:
        return Report.load(out)
    usage = CodeUsage(tokenizer.layout) if _has_codes(tokenizer) and hasattr(tokenizer, "layout") else None
    ways = {"": _Reconstructed(_reconstructing(tokenizer, place, usage))}
    if continuous is not None:
        ways["continuous_"] = _Reconstructed(_reconstructing(continuous, place, None))
    originals, labels = FeatureSet(), []
    shape: tuple[int, int] | None = None
    with progress("Reconstructing", total=len(pictures), unit="images") as bar, torch.inference_mode():
        for images, batch_labels in pictures.batches(batch_size):
            originals.append(network(images))
            for way in ways.values():
                way.update(images, place, network)
            labels += batch_labels.tolist()
            shape = (images.shape[-2], images.shape[-1])
            bar.advance(len(images), psnr=float(ways[""].psnr[-1].mean()))
    if len(originals) < 2:
        raise CodaError(f"{data}: {len(originals)} pictures could be read; a distance needs two at least")
    measurement = {
        "reference": describe_seen(pictures, labels, shape),
        "tokenizer": settings["tokenizer"],
        "continuous": settings["continuous"],
        "codes": str(usage.layout) if usage else None,
        "seed": seed,
        "batch_size": batch_size,
        **describe_run(place),
    }
    report = _report(ways, originals, usage, network, measurement)
    run.finish(report.save)
    return report


def _report(
    ways: dict[str, _Reconstructed],
    originals: FeatureSet,
    usage: CodeUsage | None,
    extractor: FeatureExtractor,
    measurement: dict[str, Any],
) -> Report:
    figures, seed = [], measurement["seed"]
    with progress("Comparing", total=len(ways), unit="models") as bar:
        stats = Statistics.of(originals.pooled)
        for prefix, way in ways.items():
            figures += way.figures(prefix, extractor, originals, stats, seed)
            bar.advance()
    return Report(
        title="Reconstruction",
        figures=figures + (_usage_figures(usage) if usage else []),
        tables=[_usage_table(usage)] if usage else [],
        plots=[_usage_plot(usage)] if usage else [],
        warnings=sample_size_warnings(len(originals), originals.pooled.shape[1], extractor.figure_names.distance),
        provenance={
            "extractor": extractor.description,
            "rounding": ROUNDING,
            "self_check": f"{frechet_distance(stats, stats):.3g} (the originals against themselves)",
            **measurement,
        },
    )


def _reconstructing(model: Any, device: torch.device, usage: CodeUsage | None) -> Reconstruct:
    """`model` as a callable images → images, on `device`, counting codes into `usage`."""
    if isinstance(model, torch.nn.Module):
        model = model.to(device).eval()
    if not _has_codes(model):
        if not callable(model):
            raise CodaError(f"{type(model).__name__} has neither encode and decode nor is it a callable on images")
        return model

    def reconstruct(images: torch.Tensor) -> torch.Tensor:
        encoded = model.encode(images)
        if usage is not None:
            usage.update(encoded)
        return model.decode(encoded)

    return reconstruct


def _has_codes(model: Any) -> bool:
    return hasattr(model, "encode") and hasattr(model, "decode")


def _mean_figure(name: str, values: torch.Tensor, unit: str, note: str) -> Figure:
    return Figure(name, float(values.mean()), unit, float(values.std()) if len(values) > 1 else None, note)


def _usage_figures(usage: CodeUsage) -> list[Figure]:
    overall = usage.overall()
    note = f"{overall.codes_seen} of {usage.layout.codebook_size} codes, all levels"
    return [
        Figure("usage", overall.usage, "%", note=note),
        Figure("perplexity", overall.perplexity, note="of the codes of all levels together"),
    ]


def _usage_table(usage: CodeUsage) -> Table:
    columns = ("level", "side", "usage %", "attainable %", "perplexity", "tokens")
    sides: Sequence[str] = [f"{h}x{w}" for h, w in usage.layout.sides]
    rows = [_usage_row(found, side) for found, side in zip(usage.per_level(), sides, strict=True)]
    return Table("Codebook usage per level", columns, [*rows, _usage_row(usage.overall(), "all")])


def _usage_row(found: LevelUsage, side: str) -> list[str | int | float | None]:
    values = asdict(found)
    level = "all" if found.level is None else found.level
    return [level, side, values["usage"], values["attainable"], values["perplexity"], values["tokens"]]


def _usage_plot(usage: CodeUsage) -> Plot:
    levels = usage.per_level()
    labels = [f"{found.level}\n{h}x{w}" for found, (h, w) in zip(levels, usage.layout.sides, strict=True)]
    return Plot("usage", "Codebook usage", "level", "% of the codebook", labels, [found.usage for found in levels])
