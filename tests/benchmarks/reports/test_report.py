from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from coda.benchmarks.reports.plots import Plot
from coda.benchmarks.reports.provenance import class_balance, command, describe_run, model_identity
from coda.benchmarks.reports.report import Figure, Report, Table
from coda.tokenizer.foundation.errors import CodaError


@pytest.fixture
def report() -> Report:
    return Report(
        title="Reconstruction",
        figures=[Figure("psnr", 21.5, "dB", 1.25, "mean over images"), Figure("recall", None, note="too few")],
        tables=[Table("Usage", ("level", "usage %"), [(0, 12.5), ("all", 100.0)])],
        provenance={"seed": 0, "versions": {"torch": "2.13"}, "sides": [1, 2]},
        warnings=["biased: N = 4"],
        plots=[Plot("usage", "Usage", "level", "%", ["0", "1"], [12.5, None])],
    )


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.to_json() == json.loads(json.dumps(report.to_json()))
    assert loaded["psnr"] == 21.5
    assert loaded["recall"] is None


def test_markdown_says_it_all(report: Report) -> None:
    page = report.to_markdown()
    assert "| psnr | 21.5 ± 1.25 dB | mean over images |" in page
    assert "| recall | – | too few |" in page
    assert "| all | 100 |" in page
    assert "biased: N = 4" in page
    assert "| versions | torch: 2.13 |" in page


def test_foreign_names_are_escaped(tmp_path: Path) -> None:
    name = "a\x1b[2J\nb\udce9.png"
    made = Report("R", [Figure("fid", 1.0, note=name)], {"skipped": {"named": [name, "<b>|"]}}, warnings=[name])
    made.save(tmp_path)
    page, saved = (tmp_path / "report.md").read_text(), (tmp_path / "report.json").read_text()
    assert r"a\x1b[2J" in made.to_markdown()
    assert not {"\x1b", "\udce9"} & {*page, *saved, *made.to_markdown()}
    assert r"&lt;b>\|" in page
    assert r"\udce9.png" in json.loads(saved)["provenance"]["skipped"]["named"][0]
    assert Report.load(tmp_path).to_json() == made.to_json()


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    Report("R", [Figure("fid", float("nan"))], {"x": [float("inf")]}).save(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert found["figures"][0]["value"] is None
    assert found["provenance"]["x"] == [None]


def test_plots_are_saved(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    report.save(tmp_path)
    assert image.open(tmp_path / "usage.png").size == (900, 525)
    assert "(usage.png)" in (tmp_path / "report.md").read_text()


def test_an_unknown_figure_names_those_there_are(report: Report) -> None:
    with pytest.raises(KeyError, match="psnr, recall"):
        report["fid"]


def test_a_damaged_or_absent_report_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="holds no report"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text('{"title": "R"')
    with pytest.raises(CodaError, match="damaged"):
        Report.load(tmp_path)


def test_provenance_names_machine_and_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/coda", "benchmark", "rfid", "--data", "my photos"])
    found = describe_run(torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["device"] == "cpu"
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert found["date"].endswith("+00:00")
    assert command() == "coda benchmark rfid --data 'my photos'"


def test_provenance_names_the_module_that_python_runs(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text("from coda.benchmarks.reports.provenance import command; print(command())")
    words = ["-m", "probe", "--data", "my photos"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "python -m probe --data 'my photos'\n"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, 3, 7, 7], "uniform: 2 each of 2 classes"),
        ([3, 7, 7], "uneven: 1 to 2 each of 2 classes"),
        ([-1, -1], "unknown: no labels"),
        ([5, -1], "uniform: 1 each of 1 classes, 1 without a label"),
    ],
)
def test_class_balance(labels: list[int], expected: str) -> None:
    assert class_balance(labels) == expected


def test_a_model_is_known_by_its_tensors() -> None:
    model = torch.nn.Linear(3, 2)
    before = model_identity(model)
    assert model_identity(model) == before
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert model_identity(model) != before


def test_a_bare_callable_is_never_taken_for_another() -> None:
    assert model_identity(lambda x: x) != model_identity(lambda x: x)
