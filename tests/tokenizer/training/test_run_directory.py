from __future__ import annotations

import json

import pytest
import torch

from coda.tokenizer import CodaError
from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.training.run_directory import RunDirectory


def finished(out, settings):
    run = RunDirectory(out, "vae", settings)
    run.save(3, {"weight": torch.ones(2)})
    run.finish(lambda folder: write_json(folder / "config.json", {}))
    return run


def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path):
    run = RunDirectory(tmp_path / "run", "vae", {"lr": 0.1})
    assert run.latest() is None
    run.save(10, {"weight": torch.ones(2)}, {"images": 40})
    run.save(20, {"weight": torch.full((2,), 2.0)}, {"images": 80})
    again = RunDirectory(tmp_path / "run", "vae", {"lr": 0.1}).latest()
    assert (again.step, again.state) == (20, {"images": 80})
    assert again.tensors["weight"].tolist() == [2, 2]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_checkpoint_cut_short_does_not_count(tmp_path):
    run = RunDirectory(tmp_path, "vae", {})
    run.save(10, {"weight": torch.ones(2)})
    cut = tmp_path / "checkpoints" / "step-00000020"
    cut.mkdir()
    (cut / "state.json").write_text('{"step": 20, "state": {}}')
    (cut / "tensors.safetensors").write_bytes(b"\x08\x00\x00")
    assert run.latest().step == 10


def test_other_settings_are_refused_with_what_differs(tmp_path):
    finished(tmp_path / "run", {"lr": 0.1, "steps": 5})
    with pytest.raises(CodaError, match=r"lr 0.1 there, 0.2 asked"):
        RunDirectory(tmp_path / "run", "vae", {"lr": 0.2, "steps": 5})
    with pytest.raises(CodaError, match="holds a vae, not a generator"):
        RunDirectory(tmp_path / "run", "generator", {})


def test_what_differs_is_named_to_the_depth_where_it_does(tmp_path):
    finished(tmp_path / "run", {"layout": {"sides": [1, 2], "codebook_size": 16}})
    with pytest.raises(CodaError, match=r"other settings \(layout.codebook_size 16 there, 32 asked\)"):
        RunDirectory(tmp_path / "run", "vae", {"layout": {"sides": [1, 2], "codebook_size": 32}})


def test_a_finished_run_stays_unless_overwritten(tmp_path):
    finished(tmp_path / "run", {"lr": 0.1})
    assert RunDirectory(tmp_path / "run", "vae", {"lr": 0.1}).complete
    assert (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not RunDirectory(tmp_path / "run", "vae", {"lr": 0.1}, overwrite=True).complete
    assert not (tmp_path / "run" / "config.json").exists()


def test_overwrite_spares_an_unfinished_run_of_the_same_settings(tmp_path):
    RunDirectory(tmp_path / "run", "vae", {"lr": 0.1}).save(7, {"weight": torch.ones(1)})
    assert RunDirectory(tmp_path / "run", "vae", {"lr": 0.1}, overwrite=True).latest().step == 7


def test_the_log_forgets_what_a_resumed_run_repeats(tmp_path):
    run = RunDirectory(tmp_path / "run", "vae", {})
    for step in (1, 2, 3):
        run.log(step, loss=step / 2)
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    run.forget_log_after(2)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
