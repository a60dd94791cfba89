"""What several packages' tests share: where the real photographs are, if they are there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton reads it when it is first imported

settings.register_profile("coda", deadline=None)  # a busy machine is slow, and that is no failure
settings.load_profile("coda")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs and a real small VAE, kept outside of the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared photographs (../shared/data) are not here")
    return SHARED / "data"


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Golden values of the published code, kept outside of the repository."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("the golden values of the published code (../shared/reference) are not here")
    return SHARED / "reference"
