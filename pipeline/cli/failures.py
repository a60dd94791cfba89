"""How a command ends early: signals that end it, and one line for what went wrong."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import types
import warnings
from collections.abc import Collection, Iterator
from typing import NoReturn

_NO_SPACE = re.compile("no space left|disk quota|ENOSPC", re.IGNORECASE)
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|cannot allocate memory", re.IGNORECASE)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where the program stands, so that nothing is left half written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as Ctrl-C does: what is open is closed and removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: types.FrameType | None) -> NoReturn:
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, old in before.items():
            if old != signal.SIG_IGN:  # nohup
                signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' warnings off stderr, which is for progress and for the one line of an error."""
    chatty = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        os.environ.setdefault(f"{logger.name.upper()}_VERBOSITY", "error")  # read when it is imported
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


def reopen_closed_streams() -> None:
    """Let stderr stand in for a stdout that was closed, and the null device for both."""
    for name in ("stderr", "stdout"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_WRONLY)  # that of the closed stream, which the next file would get
            setattr(sys, name, sys.stderr or os.fdopen(number, "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8


def reason(error: BaseException, flags: Collection[str] = ()) -> str:
    """One line for what went wrong in a command with these `flags`."""
    kind = type(error)
    text = " ".join(str(error).split())
    if kind.__module__.startswith("coda."):
        return text
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _NO_SPACE.search(text):
        place = getattr(error, "filename", None)
        return f"no space left on the disk{f' for {place}' if place else ''}: free some and run the command again"
    if isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError" or _NO_MEMORY.search(text):
        amount = re.search(r"[Tt]ried to allocate (\d[\d.]*) ?([KMG]iB|bytes)", text)
        tried = f" ({amount[1]} {amount[2]} more were needed)" if amount else ""
        found = [flag for flag in ("--batch-size", "--size") if flag in flags]
        smaller = " or ".join(found[:1] if "--tokenizer" in flags else found)  # a tokenizer may have a size of its own
        return f"not enough memory{tried}" + (f": a smaller {smaller} needs less" if smaller else "")
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return (f"{error.filename}: " if error.filename else "") + error.strerror.lower()
    if isinstance(error, ImportError) and error.name:
        return f"{text}: install it with pip"
    return f"{kind.__name__}: {text or 'no further details'} (--debug shows where)"
