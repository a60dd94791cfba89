"""Quality of a tokenizer's reconstructions: PSNR, SSIM, Fréchet distance, KID, and codebook usage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer import CodaTokenizer, CodeLayout
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import ImageSource, to_uint8, to_unit
from coda.tokenizer.images.psnr_ssim import psnr, ssim
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.run_directory import RunDirectory
from coda.tokenizer.usage import CodeUsage, LevelUsage

from .comparison import extract_features, sample_size_warnings
from .features.distances import FeatureSet, Statistics, frechet_distance, kernel_distance
from .features.extractors import FeatureExtractor, load_extractor, require_torch_fidelity
from .image_sets.image_set import ROUNDING, open_image_set
from .reports.plots import Plot
from .reports.provenance import describe_run, model_identity
from .reports.report import Cell, Figure, Report, Table
from .settings import ReconstructionSettings

Reconstruct = Callable[[torch.Tensor], torch.Tensor]


class _Reconstructed:
    """Figures per image and features of one model's reconstructions."""

    def __init__(self, reconstruct: Reconstruct) -> None:
        self.reconstruct = reconstruct
        self.features = FeatureSet()
        self.psnr: list[torch.Tensor] = []
        self.ssim: list[torch.Tensor] = []

    def update(self, pixels: torch.Tensor, device: torch.device, extractor: FeatureExtractor) -> None:
        """Reconstruct pixels (B, 3, H, W) uint8 and compare."""
        found = to_uint8(self.reconstruct(to_unit(pixels.to(device)))).cpu()
        self.psnr.append(psnr(pixels, found))
        self.ssim.append(ssim(pixels, found))
        self.features.append(extractor(found))

    def figures(
        self, prefix: str, extractor: FeatureExtractor, original: FeatureSet, stats: Statistics, seed: int
    ) -> list[Figure]:
        """All figures, with `prefix` before their names."""
        names = extractor.figure_names
        distance = frechet_distance(Statistics.of(self.features.pooled), stats)
        kid = kernel_distance(self.features.pooled, original.pooled, seed)
        return [
            _mean_figure(f"{prefix}psnr", torch.cat(self.psnr), "dB", "mean over images, uint8"),
            _mean_figure(f"{prefix}ssim", torch.cat(self.ssim), "", "Gaussian window 11×11, σ 1.5, RGB, uint8"),
            Figure(f"{prefix}{names.distance}", distance, note="against the originals"),
            Figure(f"{prefix}{names.kid}", kid.mean, spread=kid.spread, note=kid.how),
        ]


def reconstruction_metrics(
    tokenizer: Any,
    data: str | Path | ImageSource,
    out: str | Path = "runs/reconstruction-metrics",
    settings: ReconstructionSettings = ReconstructionSettings(),
    run: RunOptions = RunOptions(),
    continuous: Any = None,
) -> Report:
    """Measure reconstructions of images, and write the report.

    Args:
        tokenizer: A tokenizer directory; an object with `encode(images) -> codes` and `decode(codes) -> images` (and
            `layout`, to report the usage); or a callable images → images. Images are (B, 3, H, W) in [-1, 1].
        data: Images: anything that `open_images` takes.
        out: Directory of the report.
        settings: What is measured. Without a size, the images are as they are if the tokenizer has none either.
        run: Device, to which models that are modules are moved, and workers.
        continuous: The continuous VAE, with `encode` and `decode`, or a callable images → images, to measure its own
            reconstructions as well.

    Returns:
        The report: `report["psnr"]`, `report["fd_efficientnet_lite0"]` (or "fid"), …

    Raises:
        CodaError: If `out` holds something else, the images cannot be opened or differ in size, or the extractor's
            weights are missing.
    """
    require_torch_fidelity()
    device = resolve_device(run.device)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    size = getattr(tokenizer, "size", None) if settings.size is None else settings.size
    images = open_image_set(data, size, settings.limit, settings, run)
    network = load_extractor(settings.extractor, device)
    record = {
        "tokenizer": model_identity(tokenizer),
        "continuous": None if continuous is None else model_identity(continuous),
        "data": images.description,
        "seed": settings.seed,
        "extractor": network.name,
    }
    directory = RunDirectory(out, "reconstruction benchmark", record, run.overwrite)
    if directory.complete:
        return Report.load(out)
    usage = CodeUsage(tokenizer.layout) if _has_codes(tokenizer) and hasattr(tokenizer, "layout") else None
    models = {"": _Reconstructed(_reconstructing(tokenizer, device, usage))}
    if continuous is not None:
        models["continuous_"] = _Reconstructed(_reconstructing(continuous, device, None))

    def reconstruct(pixels: torch.Tensor) -> dict[str, float]:
        for model in models.values():
            model.update(pixels, device, network)
        return {"psnr": float(models[""].psnr[-1].mean())}

    with torch.inference_mode():
        original = extract_features(images, network, settings.batch_size, "Reconstructing", on_batch=reconstruct)
    if len(original.features) < 2:
        raise CodaError(f"{data}: {len(original.features)} images could be read; a distance needs at least two")
    provenance = {
        "reference": original.description,
        "tokenizer": record["tokenizer"],
        "continuous": record["continuous"],
        "codes": str(usage.layout) if usage else None,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        **describe_run(device),
    }
    report = _report(models, original.features, usage, network, provenance)
    directory.finish(report.save)
    return report


def _report(
    models: dict[str, _Reconstructed],
    originals: FeatureSet,
    usage: CodeUsage | None,
    extractor: FeatureExtractor,
    provenance: dict[str, Any],
) -> Report:
    figures, seed = [], provenance["seed"]
    with progress("Comparing", total=len(models), unit="models") as bar:
        stats = Statistics.of(originals.pooled)
        for prefix, model in models.items():
            figures += model.figures(prefix, extractor, originals, stats, seed)
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
            **provenance,
        },
    )


def _reconstructing(model: Any, device: torch.device, usage: CodeUsage | None) -> Reconstruct:
    """`model` as a callable images → images on `device`, which counts codes in `usage`."""
    if isinstance(model, torch.nn.Module):
        model = model.to(device).eval()
    if not _has_codes(model):
        if not callable(model):
            raise CodaError(f"{type(model).__name__} has no encode and decode, and is not callable")
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
        Figure("perplexity", overall.perplexity, note="codes of all levels together"),
    ]


def _usage_table(usage: CodeUsage) -> Table:
    columns = ("level", "grid", "usage %", "attainable %", "perplexity", "tokens", "tokens per code")
    grids = [f"{h}x{w}" for h, w in usage.layout.sides]
    levels = [*zip(usage.per_level(), grids, strict=True), (usage.overall(), "all")]
    return Table("Codebook usage per level", columns, [_usage_row(*level, usage.layout) for level in levels])


def _usage_row(found: LevelUsage, grid: str, layout: CodeLayout) -> list[Cell]:
    level = "all" if found.level is None else found.level
    per_code = found.tokens / layout.codebook_size
    return [level, grid, found.usage, found.attainable, found.perplexity, found.tokens, per_code]


def _usage_plot(usage: CodeUsage) -> Plot:
    levels = usage.per_level()
    labels = [f"{found.level}\n{h}x{w}" for found, (h, w) in zip(levels, usage.layout.sides, strict=True)]
    return Plot("usage", "Codebook usage", "level", "% of the codebook", labels, [found.usage for found in levels])
