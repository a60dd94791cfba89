"""Progress on stderr: rate, time left and the figures of the moment; silent where stderr is no terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .errors import shown


class _Rate(ProgressColumn):
    """Items per second, or seconds per item where that is over one."""

    def render(self, task: Task) -> Text:
        """The rate of `task` as text."""
        speed = task.finished_speed or task.speed
        unit = task.fields["unit"]
        if not speed:
            return Text(f"- {unit}/s")
        return Text(f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit.removesuffix('s')}")


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, task: Task) -> None:
        self._progress, self._task = progress, task

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        """Count `n` more; `shown` figures (loss=0.12, skipped=3) replace those shown before."""
        self._progress.advance(self._task.id, n)
        if shown:
            text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            self._progress.update(self._task.id, shown=text)


@contextmanager
def progress(title: str, total: int | None, unit: str = "steps", completed: int = 0) -> Iterator[Bar]:
    """Show the progress of a long piece of work.

    Args:
        title: What is being done, as a present participle ("Adapting").
        total: How many units there are in all, or None where nobody knows.
        unit: What is counted, in the plural.
        completed: How many were done before (a resumed run).
    """
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    ]
    speaks = console.is_terminal and os.environ.get("RANK", "0") == "0"  # of several processes, one
    with Progress(*columns, console=console, disable=not speaks) as display:
        task = display.add_task(title, total=total, completed=completed, unit=unit, shown="")
        yield Bar(display, display.tasks[display.task_ids.index(task)])


def log_info(message: str) -> None:
    """Tell the user something in one line on stderr, terminal or not."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(shown(message))
