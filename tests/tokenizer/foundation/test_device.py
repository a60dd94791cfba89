"""Which device a name stands for."""

import pytest
import torch

from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError


def test_devices_of_this_machine() -> None:
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["abacus", "", "meta", "xla", "cuda:99", "cpu:1", "mps:3"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(CodaError, match="device") as error:
        resolve_device(name)
    assert "cpu" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_accelerator_is_there_or_named(name: str) -> None:
    if {"cuda": torch.cuda, "mps": torch.backends.mps}[name].is_available():
        assert resolve_device(name).type == name
    else:
        with pytest.raises(CodaError, match=f"has no {name.upper()}"):
            resolve_device(name)
