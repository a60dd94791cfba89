"""Shared by the tests of several packages: paths of the real images, seeds, memory measured in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton reads it when it is first imported

settings.register_profile("coda", deadline=None)  # a busy machine is slow, which is not a failure
settings.load_profile("coda")

PEAK = """
import sys
import torch
from pathlib import Path

def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
"""

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and a real small VAE, kept outside of the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared photos (../shared/data) are not here")
    return SHARED / "data"


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Golden values of the published code, kept outside of the repository."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("the golden values of the published code (../shared/reference) are not here")
    return SHARED / "reference"


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    """Reads all files of a folder, by relative path."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def mebibytes() -> Callable[..., float]:
    """`mebibytes(prepare, code, *words)`: what `code` takes above what `prepare` took, in a process of its own.

    A fresh process, since one that has run other tests reuses memory that they freed and grows by nothing.
    `prepare` should run a small case, so that libraries are loaded and their buffers made; `words` are `sys.argv[1:]`.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process its memory")

    def used(prepare: str, code: str, *words: object) -> float:
        script = f"{PEAK}\n{prepare}\nbase = peak()\n{code}\nprint(peak() - base)\n"
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    return used
