"""Shared by the tests of several packages: paths of the real images, seeds, memory measured in a fresh process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device; without one the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    return torch.device("cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the CUDA device if there is one."""
    return request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where the fused kernels run: a CUDA device, or the CPU in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed; the fused kernels cannot be tested")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
def fresh() -> Callable[..., Any]:
    """`fresh(code, *words)` starts code in a process of its own, where nothing but imports has happened yet.

    It is forked from a server that has imported the packages, which takes seconds. `words` are its `sys.argv[1:]`; what
    it gives to `send` can be received from the connection that is returned with the process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["coda.tokenizer.adapt", "coda.generator.train_maskgit", "coda.pipeline.coda_pipeline"]
    )

    def start(code: str, *words: object, **environment: str) -> tuple[BaseProcess, Connection]:
        ours, theirs = context.Pipe()
        before = f"import os, sys\nsys.argv[1:] = {[*map(str, words)]}\nos.environ |= {environment}\n"
        process = context.Process(target=exec, args=(before + code, {"send": theirs.send}))
        process.start()
        theirs.close()
        return process, ours

    return start


@pytest.fixture(scope="session")
def mebibytes(fresh: Callable[..., Any]) -> Callable[..., float]:
    """`mebibytes(prepare, code, *words)`: what `code` takes above what `prepare` took, in a fresh process.

    One that has run other tests reuses memory that they freed and grows by nothing. `prepare` should run a small case,
    so that libraries' buffers are made.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process its memory")

    def used(prepare: str, code: str, *words: object) -> float:
        process, connection = fresh(f"{PEAK}\n{prepare}\nbase = peak()\n{code}\nsend(peak() - base)\n", *words)
        process.join()
        assert process.exitcode == 0  # its traceback is on stderr
        return connection.recv()

    return used
