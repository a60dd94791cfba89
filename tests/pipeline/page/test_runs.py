"""What a folder of runs has to show."""

from __future__ import annotations

import json

import pytest
import torch

from coda.pipeline.page.runs import USAGE_COLUMNS, find_runs, run_curves, usage_rows
from coda.tokenizer import CodaError, CodeLayout
from coda.tokenizer.usage import CodeUsage


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    (folder / "ablation" / "generator").mkdir(parents=True)
    lines = [json.dumps({"step": 10 * i, "loss": 1 / (i + 1)}) for i in range(3)]
    (folder / "ablation" / "generator" / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 30, "lo')
    (folder / "empty").mkdir()
    (folder / "empty" / "log.jsonl").write_text("")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "log.jsonl").write_text(lines[0])
    return folder


def test_curves_of_a_training_that_still_runs(runs):
    pytest.importorskip("matplotlib")
    assert sorted(find_runs(runs, "log.jsonl")) == ["ablation/generator", "empty"]
    drawn = run_curves(runs, "ablation/generator")
    assert drawn.width > 500 and drawn.height > 100


def test_what_cannot_be_drawn(runs):
    with pytest.raises(CodaError, match="empty has logged nothing yet"):
        run_curves(runs, "empty")
    for name in ("../outside", str(runs.parent / "outside"), "nothing"):
        with pytest.raises(CodaError, match="there is no training"):
            run_curves(runs, name)
    assert find_runs(runs / "missing", "log.jsonl") == []


def test_usage_of_levels():
    layout = CodeLayout([1, 2], 8)
    usage = CodeUsage(layout)
    usage.update(torch.tensor([[3, 1, 1, 2, 2]]))
    rows = usage_rows(usage.per_level(), layout)
    assert rows == [[0, "1×1", 1, 12.5, 100.0, 1.0], [1, "2×2", 2, 25.0, 50.0, 2.0]]
    assert len(USAGE_COLUMNS) == len(rows[0])
