"""One run at a time in a directory: two that write there at once would undo each other's work."""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakSet

from .errors import CodaError

try:
    import fcntl
except ImportError:  # Windows: two runs in one directory go unnoticed
    fcntl = None  # type: ignore[assignment]

_open_locks: WeakSet[DirectoryLock] = WeakSet()


class DirectoryLock:
    """Holds a directory until it is closed or collected, or the process ends in whatever way.

    Args:
        path: The directory; made if it does not exist.
        shared: Hold it together with others that hold it shared, instead of alone.
        reentrant: Join in where this same process holds it already.
        name: What to call the directory in the message; `path` if None.

    Raises:
        CodaError: If another process holds it.
    """

    def __init__(
        self, path: Path, shared: bool = False, reentrant: bool = False, name: str | Path | None = None
    ) -> None:
        self._name, self._handle = name or path, -1
        path.mkdir(parents=True, exist_ok=True)
        while fcntl is not None and not self._is_of(path):  # its last holder may just have replaced or removed it
            self.close()
            path.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                self._hold(shared)
            except CodaError:
                mine = next((lock for lock in _open_locks if reentrant and lock._is_of(path)), None)
                self.close()
                if mine is None:
                    raise
                self._handle = os.dup(mine._handle)
        _open_locks.add(self)

    def share(self) -> None:
        """Let others in that hold it shared; those that want it alone stay out."""
        if self._handle >= 0:
            self._hold(shared=True)

    def close(self) -> None:
        """Let others in."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    __del__ = close

    def _is_of(self, path: Path) -> bool:
        """Whether this lock is open, and of the directory that is now at `path`."""
        return self._handle >= 0 and path.exists() and os.path.samestat(os.fstat(self._handle), path.stat())

    def _hold(self, shared: bool) -> None:
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CodaError(f"{self._name} is being written by another process; choose another --out") from None
        except OSError:  # a file system without locks
            return


def _release_in_child() -> None:
    """A forked process (one that loads images, say) must not keep a directory locked after its parent was killed."""
    for lock in list(_open_locks):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
