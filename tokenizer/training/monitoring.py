"""Monitoring of a training: log, sheets, validation, curves.

In the run directory:

    log.jsonl                 figures, a line every ten steps
    sheets/step-00000100.png  held-out images above their reconstructions
    curves.png                the log as curves, drawn at the end
    logs/tensorboard          with `log_with="tensorboard"`

On stderr: a line at the start and at the end, and one if the codebook collapses. Nothing here changes what is trained:
no randomness is drawn, and weights are as they were after each call.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from PIL import Image

from ..foundation.atomic_io import write_bytes
from ..foundation.distributed import sum_over_processes
from ..foundation.errors import CodaError, first_line
from ..foundation.launcher import is_main_process
from ..foundation.progress import log_info
from ..layout import CodeLayout
from ..settings import RunOptions
from ..usage import CodeUsage, effective_rank
from .curves import draw_curves
from .optimization import LOG_EVERY
from .run_directory import Checkpoint, RunDirectory

if TYPE_CHECKING:
    from ..quantizer.residual_quantizer import ResidualQuantizer

_FALL = 0.5  # of the usage: what is called a collapse
_ENOUGH_TOKENS = 8  # per code; a healthy codebook then leaves few codes unused
_COUNTS = "monitor.counts"
_TRACKER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
_IN_END_LINE = (
    "loss",
    "psnr",
    "validation_psnr",
    "validation_perceptual",
    "usage",
    "perplexity",
    "effective_rank",
    "validation_loss",
)


class HeldOut(Protocol):
    """Held-out data that a training is validated on.

    Attributes:
        what: What the training sees, in words.
    """

    what: str

    def __len__(self) -> int: ...

    def interval(self, steps: int) -> int:
        """Steps between validations, in a training of so many steps."""

    def measure(
        self, predict: Callable[..., Any], device: torch.device, label: str
    ) -> tuple[dict[str, float], Image.Image | None]:
        """Figures of `predict`, which must leave the model as it was, and a sheet that shows them, if there is one."""


class Monitor:
    """Follows one training: decides when to log, measures, and writes what was measured.

    Args:
        title: What is being done, as a present participle ("Adapting").
        accelerator: The training's accelerator.
        directory: The training's directory; the log of a resumed run is cut to the checkpoint.
        steps: Optimizer steps in total.
        run: Where else to log.
        checkpoint: Where the training goes on, if anywhere.
        validation: What is held out, if anything may be.
        layout: Layout of the codes that `count` will see.
        what: What a step sees, for the first line; by default in the validation's words.

    Attributes:
        start: Steps done before.
        shown: Latest figures of the validation, for the progress bar.

    Raises:
        CodaError: If the package of `run.log_with` is missing or does not start.
    """

    def __init__(
        self,
        title: str,
        accelerator: Accelerator,
        directory: RunDirectory,
        steps: int,
        run: RunOptions,
        checkpoint: Checkpoint | None = None,
        validation: HeldOut | None = None,
        layout: CodeLayout | None = None,
        what: str = "",
    ) -> None:
        self.start = 0 if checkpoint is None else checkpoint.step
        self.shown: dict[str, float | str] = {}
        self._title, self._accelerator, self._directory, self._steps = title, accelerator, directory, steps
        self._every = max(1, steps) if validation is None else validation.interval(steps)
        self._validation = validation if validation is not None and len(validation) else None
        self._usage = None if layout is None else CodeUsage(layout, accelerator.device)
        if self._usage is not None and checkpoint is not None and is_main_process() and _COUNTS in checkpoint.tensors:
            self._usage.counts.copy_(checkpoint.tensors[_COUNTS])
        self._seconds, self._began = 0.0, time.monotonic()
        directory.forget_log_after(self.start or -1)
        self._best: dict[str, float] = {}
        self._skipped = 0
        for line in directory.read_log():
            self._name_collapse({name: value for name, value in line.items() if name.startswith("usage")})
            self._skipped = int(line.get("skipped", 0)) if is_main_process() else 0
        _start_trackers(accelerator, directory, run.log_with)
        if is_main_process():
            what = what or ("" if validation is None else validation.what)
            log_info(f"{title}: {'; '.join(filter(None, [self._describe(), what, f'log in {directory.path}']))}")

    def is_due(self, done: int) -> bool:
        """Whether to log after `done` steps."""
        return done % LOG_EVERY == 0 or self._is_validated(done)

    def begin(self, predict: Callable[..., Any] | None = None, quantizer: ResidualQuantizer | None = None) -> None:
        """Measure and log what the training starts from; the time of the training counts from here."""
        if self.start == 0 and self._validation is not None:
            self.log(0, **self.look(0, predict, quantizer))
        self._seconds, self._began = 0.0, time.monotonic()

    def count(self, codes: torch.Tensor) -> None:
        """Count the codes (B, T) of one step."""
        if self._usage is not None:
            with self._timed():
                self._usage.update(codes)

    def count_skipped(self, items: Sized) -> None:
        """Count the images of one step that could not be read."""
        self._skipped += len(items)

    def look(
        self, done: int, predict: Callable[..., Any] | None = None, quantizer: ResidualQuantizer | None = None
    ) -> dict[str, float]:
        """Figures after `done` steps, if a validation is due: codebook usage, and quality on what is held out.

        All processes call it; the first one measures.

        Args:
            done: Steps done.
            predict: What the validation measures, with the weights that would be saved now.
            quantizer: Whose codebook's effective rank is measured.

        Returns:
            usage, perplexity (also by level), effective_rank, and the validation's; or nothing.
        """
        if not self._is_validated(done):
            return {}
        figures: dict[str, float] = {}
        with self._timed():
            if self._usage is not None:
                figures |= self._measure_usage(self._usage, done)
            if is_main_process():
                if quantizer is not None:
                    figures["effective_rank"] = effective_rank(quantizer.value_table())
                if self._validation is not None and predict is not None:
                    quality, sheet = self._validation.measure(predict, self._accelerator.device, f"step {done:,}")
                    figures |= quality
                    if sheet is not None:
                        content = io.BytesIO()
                        sheet.save(content, "PNG")
                        write_bytes(self._directory.path / "sheets" / f"step-{done:08d}.png", content.getvalue())
        if "usage" in figures:
            self.shown["usage"] = f"{figures['usage']:.1f}%"
        shown = ("validation_psnr", "validation_loss")
        self.shown |= {name: value for name, value in figures.items() if name in shown}
        return figures

    def skipped(self) -> int:
        """Images of all processes that could not be read. All of them call it."""
        return int(sum_over_processes(torch.tensor(self._skipped, device=self._accelerator.device)))

    def log(self, done: int, **figures: float) -> None:
        """Add a line to `log.jsonl`, and to the tracker."""
        with self._timed():
            self._directory.log(done, **figures)
            self._accelerator.log(figures, step=done)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """State that a checkpoint must hold, so that a resumed run logs the same. All processes call it."""
        return {} if self._usage is None else {_COUNTS: sum_over_processes(self._usage.counts)}

    def finish(self, note: str = "") -> None:
        """Draw the curves, close the trackers, and say how it ended, with `note` at the end."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
        if not is_main_process():
            return
        log = self._directory.read_log()
        with self._timed():
            if len(log) > 1 and not draw_curves(log, self._directory.path / "curves.png", self._directory.kind):
                log_info("curves.png is not drawn: matplotlib is not installed; pip install 'coda[plots]'")
        took = time.monotonic() - self._began
        latest = {name: value for line in log for name, value in line.items()}
        words = [f"{name} {latest[name]:.4g}" for name in _IN_END_LINE if name in latest]
        share = f"{100 * self._seconds / took:.1f} % of it for monitoring" if took > 0 else "no time"
        done = f"{self._steps - self.start:,} steps in {_clock(took)} ({share})"
        log_info(f"{self._title}: done, {'; '.join([done, *filter(None, [', '.join(words), note])])}")

    def _is_validated(self, done: int) -> bool:
        return done % self._every == 0 or done == self._steps

    def _measure_usage(self, usage: CodeUsage, done: int) -> dict[str, float]:
        """Usage since the last validation; names a collapse. Nothing if there were too few steps to compare."""
        if done == 0 or (done % self._every and done > self._every):
            return {}
        total = CodeUsage(usage.layout)
        total.counts = sum_over_processes(usage.counts).cpu().clone()
        usage.counts.zero_()
        overall, levels = total.overall(), total.per_level()
        used = {"usage": overall.usage} | {f"usage_level_{level.level}": level.usage for level in levels}
        if not self._best and overall.tokens >= _ENOUGH_TOKENS * usage.layout.codebook_size:
            self._best = {"usage": 100.0}
        problem = self._name_collapse(used)
        if problem and is_main_process():
            log_info(
                f"{self._title}: the codebook has collapsed at step {done:,}: {problem}; "
                "a lower lr or a larger entropy_weight may help"
            )
        figures = {"perplexity": overall.perplexity}
        return used | figures | {f"perplexity_level_{level.level}": level.perplexity for level in levels}

    def _name_collapse(self, used: Mapping[str, float]) -> str | None:
        """`find_collapse`, against the largest usage since the last collapse."""
        problem = find_collapse(used, self._best)
        self._best = {name: value if problem else max(value, self._best.get(name, 0)) for name, value in used.items()}
        return problem

    def _describe(self) -> str:
        """How much is done, and where."""
        device, count = self._accelerator.device, self._accelerator.num_processes
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        place += f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        place = f"{count} processes on {place}" if count > 1 else f"on {place}"
        precision = {"no": "float32", "bf16": "bfloat16"}.get(self._accelerator.mixed_precision, "")
        resumed = f", resumed after {self.start:,}" if self.start else ""
        return f"{self._steps:,} steps{resumed}; {place}, {precision}"

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began


def find_collapse(used: Mapping[str, float], best: Mapping[str, float]) -> str | None:
    """Which usage fell to less than half of the best so far, as a phrase for a message; None if none did.

    Args:
        used: Usage in percent, by name.
        best: The best of each so far; empty at the start.
    """
    shares = {name: value / best[name] for name, value in used.items() if best.get(name)}
    fallen = [name for name, share in shares.items() if share < _FALL]
    if not fallen:
        return None
    worst = min(fallen, key=lambda name: shares[name])
    others = f", {len(fallen) - 1} others fell too" if len(fallen) > 1 else ""
    return f"{worst} fell from {best[worst]:.1f} % to {used[worst]:.1f} %{others}"


def _start_trackers(accelerator: Accelerator, directory: RunDirectory, log_with: str | None) -> None:
    """Start accelerate's tracker of that name; its files go to `logs` in the run directory.

    Raises:
        CodaError: If its package is missing, or it does not start.
    """
    if log_with is None:
        return
    packages = _TRACKER_PACKAGES[log_with]
    if not any(map(find_spec, packages)):
        raise CodaError(f"log_with {log_with} needs a package that is not installed: pip install {packages[0]}")
    folder = directory.path / "logs"
    folder.mkdir(exist_ok=True)
    accelerator.log_with = [log_with]
    accelerator.project_configuration.set_directories(str(folder))
    options = {"wandb": {"name": directory.path.name, "dir": str(folder)}}
    config = {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in directory.settings.items()
    }
    try:
        accelerator.init_trackers("coda", config, options)
    except Exception as error:  # each tracker has errors of its own, such as a missing login
        raise CodaError(f"log_with {log_with} does not start: {first_line(error)}") from error


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
