"""Search for the settings of the sampling: the lowest Fréchet distance to a reference within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.progress import log_info, progress
from coda.tokenizer.foundation.reading import read_json
from coda.tokenizer.images import to_uint8
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.run_directory import RunDirectory

from .comparison import extract_features
from .features.distances import FeatureSet, Statistics, frechet_distance
from .features.extractors import FeatureExtractor, load_extractor, require_torch_fidelity
from .generation import choose_classes
from .image_sets.image_set import ImageSet
from .image_sets.sample_store import Sampler
from .reports.provenance import describe_run
from .reports.report import Figure, Report, Table
from .settings import SweepSettings

Choice = dict[str, Any]  # values by the setting's name in the scheduler's config

# What is tried, in the order of the search; the present value is in between.
GRID: Mapping[str, Sequence[float]] = {
    "guidance_scale": (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0),
    "confidence_noise": (0.0, 1.0, 2.0, 4.5, 9.0, 18.0, 36.0),
    "temperature": (0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
    "num_inference_steps": (6, 8, 12, 16, 24, 32, 48, 64),
}


def sweep(
    sampler_with: Callable[[Choice], Sampler],
    reference: ImageSet,
    classes: Sequence[int],
    start: Choice,
    out: str | Path = "runs/sweep",
    settings: SweepSettings = SweepSettings(),
    run: RunOptions = RunOptions(),
    model: Mapping[str, Any] | None = None,
    least_steps: int = 1,
) -> Report:
    """Search one setting after the other, from its present value to its neighbors, for as long as that pays.

    Every choice is measured on samples of the same classes and seeds. At the end the start and the best choice are
    measured on other seeds: it is the winner only if it is better there too. Rerun the same call to resume.

    Args:
        sampler_with: From values of `GRID`'s settings to a callable (class indices, seeds) -> images (B, 3, H, W) in
            [-1, 1], where each image depends on its class and seed alone.
        reference: Images to compare with.
        classes: Class indices to sample, in turns.
        start: The present value of each setting that is searched.
        out: Directory of the report.
        settings: Time limit, number of samples, extractor.
        run: Device of the extractor.
        model: What is sampled, for the report. An interrupted run is resumed if this is equal.
        least_steps: Fewer steps are not tried.

    Returns:
        The report; `report.provenance["winner"]` is the best choice, or `start`.

    Raises:
        CodaError: If `out` holds something else, or there are fewer than two samples.
    """
    require_torch_fidelity()
    device = resolve_device(run.device)
    network = load_extractor(settings.extractor, device)
    wanted = {"num_images": settings.num_images, "minutes": settings.minutes, "seed": settings.seed}
    record = {
        "samples": dict(model or {}),
        "classes": list(classes),
        "start": start,
        "reference": reference.description,
        "extractor": network.name,
        "wanted": wanted,
    }
    directory = RunDirectory(out, "sweep benchmark", record, run.overwrite)
    if directory.complete:
        return Report.load(directory.path)
    trials = _Trials(directory.path / "tried.json", sampler_with, reference, network, classes, settings)
    best = _climb(trials, start, least_steps)
    before, after = (trials.measure(choice, fresh=True) for choice in (start, best))
    report = _report(trials.tried, network, start, best, (before, after), settings.num_images)
    report.provenance.update(extractor=network.description, reference=reference.description, sampling=dict(model or {}))
    report.provenance.update(wanted, **describe_run(device))
    directory.finish(report.save)
    return report


class _Trials:
    """Measures choices, and keeps what was measured in a file."""

    def __init__(
        self,
        file: Path,
        sampler_with: Callable[[Choice], Sampler],
        reference: ImageSet,
        network: FeatureExtractor,
        classes: Sequence[int],
        settings: SweepSettings,
    ) -> None:
        self._file, self._sampler_with, self._reference, self._network = file, sampler_with, reference, network
        self._labels = choose_classes(classes, settings.num_images, "uniform", settings.seed)
        self._seed, self._batch_size, self._limit = settings.seed, settings.batch_size, 60 * settings.minutes
        self._real: Statistics | None = None
        self.tried: list[dict[str, Any]] = read_json(file)["tried"] if file.exists() else []

    def may_measure(self, choice: Choice) -> bool:
        """Whether a choice is known, or one more and the two at the end are likely to be measured in time."""
        seconds = [row["seconds"] for row in self.tried]
        return self._find(choice, False) is not None or sum(seconds) + 3 * max(seconds) <= self._limit

    def measure(self, choice: Choice, fresh: bool = False) -> float:
        """The distance to the reference of samples with a choice; with `fresh`, of samples with other seeds."""
        if (known := self._find(choice, fresh)) is not None:
            return known
        began = time.monotonic()
        if self._real is None:
            title = "Features of the reference"
            found = extract_features(self._reference, self._network, self._batch_size, title)
            self._real = Statistics.of(found.features.pooled)
        sampler, features = self._sampler_with(choice), FeatureSet()
        seeds = range(self._seed + fresh * len(self._labels), self._seed + (1 + fresh) * len(self._labels))
        words = ", ".join(f"{name} {value}" for name, value in choice.items())
        with progress(f"Sampling with {words}", total=len(seeds), unit="images") as bar:
            for i in range(0, len(seeds), self._batch_size):
                part = slice(i, i + self._batch_size)
                features.append(self._network(to_uint8(sampler(self._labels[part], seeds[part]))))
                bar.advance(len(seeds[part]))
        distance = frechet_distance(Statistics.of(features.pooled), self._real)
        seconds = time.monotonic() - began
        self.tried.append({"choice": choice, "fresh": fresh, "distance": distance, "seconds": seconds})
        write_json(self._file, {"tried": self.tried})
        other = " on other seeds" if fresh else ""
        log_info(f"{self._network.figure_names.distance} {distance:.2f}{other}: {words}")
        return distance

    def _find(self, choice: Choice, fresh: bool) -> float | None:
        rows = (row for row in self.tried if row["choice"] == choice and row["fresh"] == fresh)
        return next((row["distance"] for row in rows), None)


def _climb(trials: _Trials, start: Choice, least_steps: int) -> Choice:
    """The best choice found from `start` until no neighbor is better or the time is over."""
    best, lowest, improved = start, trials.measure(start), True
    while improved:
        improved = False
        for name in start:
            for direction in (1, -1):
                while (value := _neighbor(name, best[name], direction, least_steps)) is not None:
                    choice = {**best, name: value}
                    if not trials.may_measure(choice):
                        return best
                    if (distance := trials.measure(choice)) >= lowest:
                        break
                    best, lowest, improved = choice, distance, True
    return best


def _neighbor(name: str, value: float, direction: int, least_steps: int) -> float | None:
    """The next value of a setting's grid in a direction; None at its end."""
    least = least_steps if name == "num_inference_steps" else 0
    beyond = [other for other in GRID[name] if (other - value) * direction > 0 and other >= least]
    return min(beyond, key=lambda other: abs(other - value), default=None)


def _report(
    tried: list[dict[str, Any]],
    network: FeatureExtractor,
    start: Choice,
    best: Choice,
    fresh: tuple[float, float],
    count: int,
) -> Report:
    """The table of what was tried, best first, and who is the winner on fresh seeds."""
    name, (before, after) = network.figure_names.distance, fresh
    rows = [
        (*row["choice"].values(), row["distance"], "other" if row["fresh"] else "search", round(row["seconds"], 1))
        for row in sorted(tried, key=lambda row: (row["fresh"], row["distance"]))
    ]
    note = f"N = {count}, on seeds that the search did not see"
    figures = [Figure(f"{name} before", before, note=note), Figure(f"{name} after", min(before, after), note=note)]
    return Report(
        "Sampling settings",
        figures,
        {"winner": best if after < before else start, "start": start},
        [Table("What was tried", (*start, name, "seeds", "seconds"), rows)],
        [f"Distances are biased upwards for few samples (N = {count}): compare them only within this report."],
    )
