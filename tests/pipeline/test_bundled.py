"""The model that ships with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from coda.pipeline.loading import bundled_model
from coda.tokenizer import CodaError


def test_a_version_without_a_model_says_so(saved: Path, tmp_path: Path) -> None:
    assert bundled_model(saved / "pipeline") == saved / "pipeline"
    with pytest.raises(CodaError, match="no model is bundled with this version; train one"):
        bundled_model(tmp_path)
