"""Progress on stderr: rate, time left and current figures, as a bar in a terminal and as a line a minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .errors import shown
from .launcher import is_main_process

_LINE_SECONDS = 60.0


class _Rate(ProgressColumn):
    """Items per second, or seconds per item if that is more than one."""

    def render(self, task: Task) -> Text:
        """The rate of `task` as text."""
        return Text(_rate(task.finished_speed or task.speed, task.fields["unit"]))


class Bar:
    """The progress of one piece of work."""

    def __init__(self, display: Progress, task: Task, log_line: Callable[[], None] | None) -> None:
        self._display, self._task, self._log_line = display, task, log_line

    def advance(self, n: int = 1, **figures: float | int | str) -> None:
        """Count `n` more; `figures` (loss=0.12, skipped=3) replace those shown before."""
        self._display.advance(self._task.id, n)
        if figures:
            text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
            self._display.update(self._task.id, figures=text)
        if self._log_line is not None:
            self._log_line()


@contextmanager
def progress(
    title: str,
    total: int | None,
    unit: str = "steps",
    completed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """Show the progress of a long piece of work.

    A terminal gets a bar. Anywhere else, such as in a log file, a line is written once a minute and, if the work took
    longer than that, at its end. Of several processes only the first speaks.

    Args:
        title: What is being done, as a present participle ("Adapting").
        total: How many units there are in all; None if unknown.
        unit: What is counted, in the plural.
        completed: How many were done before (a resumed run).
        clock: Seconds, for tests.
    """
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ]
    speaks = is_main_process()
    with Progress(*columns, console=console, disable=not (speaks and console.is_terminal)) as display:
        display.add_task(title, total=total, completed=completed, unit=unit, figures="")
        task = display.tasks[0]
        lines = _Lines(task, completed, clock)
        yield Bar(display, task, lines.log_when_due if speaks and not console.is_terminal else None)
        if lines.logged_at is not None and lines.logged_at != task.completed:
            lines.log()


class _Lines:
    """Lines about a task, one a minute."""

    def __init__(self, task: Task, completed: int, clock: Callable[[], float]) -> None:
        self.logged_at: float | None = None  # what was done when the last line was written
        self._task, self._before, self._clock = task, completed, clock
        self._start = self._last = clock()

    def log_when_due(self) -> None:
        """Log a line if a minute has passed since the last one."""
        if self._clock() - self._last >= _LINE_SECONDS:
            self.log()

    def log(self) -> None:
        """Log a line: title, done/total, rate, time left, figures."""
        task, self._last, self.logged_at = self._task, self._clock(), self._task.completed
        done = int(task.completed)
        speed = (done - self._before) / (self._last - self._start) if self._last > self._start else 0.0
        left = (task.total - done) / speed if task.total is not None and speed else None
        counted = f"{done:,}" if task.total is None else f"{done:,}/{int(task.total):,}"
        words = [f"{task.description} {counted} {task.fields['unit']}", _rate(speed, task.fields["unit"])]
        if left is not None:
            hours, seconds = divmod(round(left), 3600)
            words.append(f"{hours}:{seconds // 60:02d}:{seconds % 60:02d} left")
        log_info(", ".join([*words, *filter(None, [task.fields["figures"]])]))


def _rate(speed: float | None, unit: str) -> str:
    if not speed:
        return f"- {unit}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit.removesuffix('s')}"


def log_info(message: str) -> None:
    """Print one line on stderr, whether it is a terminal or not."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(shown(message))
