"""One run at a time in a folder: two that write there at once would undo each other's work."""

from __future__ import annotations

import os
from pathlib import Path

from ..foundation.errors import CodaError

try:
    import fcntl
except ImportError:  # Windows: two runs on one folder go unnoticed
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Holds a folder until it is closed, or the process ends in whatever way.

    Args:
        folder: It exists.
        shared: Hold it together with others that hold it so, instead of alone.

    Raises:
        CodaError: Another process holds it.
    """

    def __init__(self, folder: Path, shared: bool = False) -> None:
        self._folder, self._handle = folder, os.open(folder, os.O_RDONLY)
        try:
            self._hold(shared)
        except CodaError:
            self.close()
            raise

    def share(self) -> None:
        """Let fellows in that hold it shared; those that want it alone stay out."""
        self._hold(shared=True)

    def close(self) -> None:
        """Let others in."""
        os.close(self._handle)

    def _hold(self, shared: bool) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CodaError(f"{self._folder} is being written by another process") from None
        except OSError:  # a file system without locks
            return
