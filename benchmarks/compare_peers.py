"""Our generator beside others: the same codes, classes, width, depth and training time.

Compared are ours level by level, ours flattened into one sequence, diffusers' `UVit2DModel`, muse-maskgit-pytorch's
transformer, and as a yardstick a small flow-matching U-Net on the pixels themselves.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coda.generator.validation import split_samples
from coda.tokenizer import CodaTokenizer
from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import log_info
from coda.tokenizer.images import ImageSource, open_images
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.optimization import start_accelerator
from coda.tokenizer.training.run_directory import RunDirectory

from .comparison import extract_features, sample_size_warnings
from .features.distances import Statistics, frechet_distance
from .features.extractors import FeatureExtractor, FigureNames, load_extractor, require_torch_fidelity
from .generation import choose_classes
from .image_sets.decoded_codes import DecodedCodes
from .image_sets.image_set import ROUNDING, SourceSet
from .image_sets.known_images import KnownImages
from .judge_report import shown_class
from .peers.muse import muse_problem
from .peers.peer import PeerSetup
from .peers.training import (
    SAMPLES,
    Batches,
    PeerFigures,
    Wanted,
    code_batches,
    image_batches_of,
    make_peer,
    read_figures,
    train_and_measure,
)
from .reports.plots import Plot
from .reports.provenance import describe_run, model_identity
from .reports.report import Figure, Report, Table
from .settings import PeersSettings

_HELD_OUT = "held-out codes, nats per code (upper bound)"
_CODES = "codes of the cache, decoded"


def compare_peers(
    cache: str | Path | CodeCache,
    tokenizer: Any,
    reference: str | Path | ImageSource,
    data: str | Path | ImageSource | None = None,
    out: str | Path = "runs/peers",
    settings: PeersSettings = PeersSettings(),
    run: RunOptions = RunOptions(),
) -> Report:
    """Train and sample generators of several kinds at equal time, and compare them. Rerun the same call to resume.

    All of them have the same width, depth, heads, batch size, optimizer, learning rate and class dropout, and train for
    the same time: that of their steps, without loading data, checkpoints and measurements. The learning rate falls with
    the time that has passed. Those on codes learn the same codes under the same law of masks. Guidance is the same for
    all. The flattened generator has as many parameters as ours, the U-Net about as many.

    Args:
        cache: A code cache, or its path: what the generators on codes learn.
        tokenizer: The tokenizer of the cache, or its directory; from Python, any object with `decode(codes) -> images`
            (B, 3, H, W) in [-1, 1], `size` and `fingerprint`.
        reference: Images that samples are compared with, as `open_images` takes them. Images of classes that the cache
            does not have are left out.
        data: Images that the U-Net learns; None takes those of `reference`.
        out: Directory of the report; the peers and their checkpoints are under `models/`.
        settings: What is compared, and for how long.
        run: Device, precision and workers.

    Returns:
        The report: a table with one row per peer, and `report["ours"]`, … their Fréchet distances. Without
        muse-maskgit-pytorch its row is left out, and a warning says so.

    Raises:
        CodaError: If `out` holds something else, the tokenizer is not that of the cache, a set cannot be opened or has
            no image of a class, or no peer can run.
    """
    require_torch_fidelity()
    accelerator = start_accelerator(run.device, run.dtype)
    network = load_extractor(settings.extractor, accelerator.device)
    cache, tokenizer = _opened(cache, tokenizer)
    settings, warnings = _without_missing(settings)
    references = _known_images(reference, cache, tokenizer.size, settings, run, settings.limit)
    images = references if data is None else _known_images(data, cache, tokenizer.size, settings, run)
    record = {
        **{name: value for name, value in vars(settings).items() if name != "peers"},
        "extractor": network.name,
        "tokenizer": model_identity(tokenizer),
        "cache": {"layout": cache.layout.to_json(), "images": cache.num_images, "variants": cache.num_variants},
        "reference": references.description,
        "data": None if data is None else images.description,
        "precision": accelerator.mixed_precision,
    }
    directory = RunDirectory(out, "peers benchmark", {**record, "peers": settings.peers}, run.overwrite)
    if directory.complete:
        return Report.load(out)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer = tokenizer.to(accelerator.device).eval()
    setup = PeerSetup.of(cache, tokenizer.size, settings)
    wanted, origin, best = _wanted(cache, tokenizer, references, network, settings, accelerator.device)
    trained, held_out = split_samples(cache, setup.generator_settings)

    def batches_for(learns: str) -> Callable[[int], Batches]:
        if learns == "codes":
            return lambda start: code_batches(cache, trained, settings, start, accelerator.device)
        flip = "mirrored" in cache.manifest["variants"]
        return lambda start: image_batches_of(images, flip, settings, run, start, accelerator.device)

    found: dict[str, PeerFigures] = {}
    for number, name in enumerate(settings.peers, 1):
        own = RunDirectory(directory.path / "models" / name, "peer benchmark", {**record, "peer": name})
        if not own.complete:
            log_info(f"Peer {number} of {len(settings.peers)}: {name}")
            peer = make_peer(name, setup)
            train_and_measure(peer, batches_for(peer.learns), cache, held_out, wanted, own, accelerator)
            del peer
            gc.collect()
        found[name] = read_figures(own.path)

    if data is None and "unet" in found:
        warnings.append("The U-Net learned the images of the reference themselves.")
    report = _report(found, best, network.figure_names, settings, len(held_out))
    dimensions = wanted.reference.mu.shape[0]
    smallest = min(settings.num_images, origin["n"])
    report.warnings.extend(warnings + sample_size_warnings(smallest, dimensions, network.figure_names.distance))
    report.provenance.update(record, reference=origin, extractor=network.description, rounding=ROUNDING)
    report.provenance["optimizer"] = "AdamW, betas 0.9 and 0.96, cosine over the time after a linear warm-up; EMA"
    report.provenance.update(describe_run(accelerator.device))

    def write(target: Path) -> None:
        report.save(target)
        for name in found:
            (target / f"samples-{name}.png").write_bytes((directory.path / "models" / name / SAMPLES).read_bytes())

    directory.finish(write)
    return report


def _opened(cache: str | Path | CodeCache, tokenizer: Any) -> tuple[CodeCache, Any]:
    """The cache and its tokenizer, loaded.

    Raises:
        CodaError: If the tokenizer is not that of the cache.
    """
    cache = cache if isinstance(cache, CodeCache) else CodeCache(cache)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    if tokenizer.fingerprint != cache.tokenizer_fingerprint:
        raise CodaError(
            f"{cache.path} holds codes of the tokenizer {cache.tokenizer_fingerprint}, not of {tokenizer.fingerprint}"
        )
    return cache, tokenizer


def _without_missing(settings: PeersSettings) -> tuple[PeersSettings, list[str]]:
    """The settings without a peer that cannot be loaded, and a warning about it.

    Raises:
        CodaError: If no peer is left.
    """
    if "muse" not in settings.peers or (problem := muse_problem()) is None:
        return settings, []
    rest = tuple(name for name in settings.peers if name != "muse")
    if not rest:
        raise CodaError(problem)
    return replace(settings, peers=rest), [f"A row is left out: {problem}."]


def _known_images(
    place: str | Path | ImageSource,
    cache: CodeCache,
    size: tuple[int, int],
    settings: PeersSettings,
    run: RunOptions,
    limit: int | None = None,
) -> SourceSet:
    """The images of the cache's classes, with their indices as labels; all images if the cache has no classes."""
    source = open_images(place, settings.max_pixels, settings.num_classes)
    if not (classes := _classes(cache)):
        return SourceSet(source, size, limit, settings.seed, run.workers, run.strict)
    images = KnownImages(source, _class_names(cache), size, run, limit, settings.seed)
    if strange := sorted(set(images.labels()) - set(classes)):
        raise CodaError(f"{source.location} has images of class {strange[0]}, which {cache.path} does not have")
    return images


def _classes(cache: CodeCache) -> list[int]:
    """Class indices that the cache has images of."""
    return sorted(set(cache.labels.tolist()) - {-1})


def _class_names(cache: CodeCache) -> Mapping[int, str] | None:
    """Names of these classes, if they have any."""
    return None if cache.class_names is None else {index: cache.class_names[index] for index in _classes(cache)}


def _wanted(
    cache: CodeCache,
    tokenizer: Any,
    references: SourceSet,
    network: FeatureExtractor,
    settings: PeersSettings,
    device: torch.device,
) -> tuple[Wanted, dict[str, Any], float]:
    """The samples to measure, the reference's description, and the distance of decoded codes: the best possible."""
    classes, names = _classes(cache) or [-1], _class_names(cache)
    labels = choose_classes(classes, settings.num_images, "uniform", settings.seed)
    real = extract_features(references, network, settings.batch_size, "Features of the reference")
    statistics = Statistics.of(real.features.pooled)

    @torch.no_grad()
    def decode(codes: torch.Tensor) -> torch.Tensor:
        return tokenizer.decode(codes.to(device))

    decoded = DecodedCodes(cache, decode, settings.num_images, settings.seed)
    codes = extract_features(decoded, network, settings.batch_size, "Features of decoded codes")
    best = frechet_distance(Statistics.of(codes.features.pooled), statistics)
    shown = {label: "" if label < 0 else shown_class(label, names) for label in classes}
    return Wanted(labels, shown, statistics, network, tokenizer), real.description, best


def _report(
    found: Mapping[str, PeerFigures], best: float, names: FigureNames, settings: PeersSettings, held_out: int
) -> Report:
    """The table, one row per peer, and a plot of the distances."""
    columns = (
        "model", "parameters", "steps", "seconds per step", "images seen", "seconds of training",
        "sampling steps", "seconds per image", names.distance, _HELD_OUT,
    )  # fmt: skip
    rows = [
        [
            peer.title, peer.parameters, peer.steps, peer.seconds_per_step, peer.images_seen, peer.training_seconds,
            peer.sampling_steps, peer.sampling_seconds, peer.distance, peer.held_out_loss,
        ]
        for peer in found.values()
    ]  # fmt: skip
    length = f"{settings.steps} steps" if settings.steps else f"{settings.minutes:g} minutes of training"
    figures = [Figure(name, peer.distance, note=f"{names.distance}, {length}") for name, peer in found.items()]
    figures.append(Figure(_CODES, best, note=f"{names.distance}: the best that codes can do"))
    reference = (_CODES, best)
    distances = [peer.distance for peer in found.values()]
    return Report(
        title="Peers",
        figures=figures,
        provenance={
            "samples": f"{settings.num_images}, classes in turns",
            "seconds per step": "forward, backward, update; without loading data",
            "seconds per image": "from the class to pixels; codes are decoded, too",
            "held-out codes": f"of {held_out} images; the bound is of -log p(codes | class), by levels and of a flat "
            "sequence alike (order-agnostic, arXiv 2110.02037)",
        },
        tables=[Table(f"Peers, {length} each", columns, rows)],
        plots=[
            Plot("peers", f"Samples after {length}", "", names.distance, list(found), distances, reference=reference)
        ],
    )
