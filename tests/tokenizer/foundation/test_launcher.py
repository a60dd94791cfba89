from __future__ import annotations

import pytest

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.launcher import check_batch_size, rank_and_world_size
from coda.tokenizer.training.optimization import start_accelerator

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in (*LAUNCHED, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("missing", [None, "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_launcher_sets_all_its_variables(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {name: value for name, value in LAUNCHED.items() if name != missing})
    assert rank_and_world_size() == ((0, 1) if missing else (1, 3))
    if missing is None:
        check_batch_size(6)
        with pytest.raises(CodaError, match="a batch of 4 cannot be shared by 3 processes"):
            check_batch_size(4)


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("variables", [{}, {"RANK": "2"}, {"LOCAL_RANK": "0"}, {"WORLD_SIZE": "1", "LOCAL_RANK": "1"}])
def test_variables_of_something_else_do_not_make_a_launch(
    variables: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, variables)
    accelerator = start_accelerator(device)
    assert (accelerator.process_index, accelerator.num_processes) == (0, 1)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_processes_that_do_not_know_of_each_other_are_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"})
    with pytest.raises(CodaError, match="WORLD_SIZE is 4, but 1 process would work"):
        start_accelerator(device)
