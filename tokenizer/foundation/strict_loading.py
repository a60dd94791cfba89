"""Loading that answers for every weight.

diffusers says nothing of a weight that is missing from a file (it stays on the `meta` device) and only warns of one
that nothing takes. Here both are errors, and so is a file that is damaged, in one line.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .errors import CodaError, first_line

Model = TypeVar("Model", bound=nn.Module)


def load_strictly(cls: type[Model], folder: str | Path, **kwargs: Any) -> Model:
    """`cls.from_pretrained(folder, **kwargs)` of diffusers' base class, with every weight accounted for.

    Args:
        cls: A ModelMixin.
        folder: A local folder with `config.json` and weights.
        **kwargs: As diffusers takes them (`torch_dtype`, `variant`, …).

    Raises:
        CodaError: The folder or its files are missing or damaged, or weights are missing, left over or misshapen.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CodaError(f"{folder} has no config.json: it does not hold a {cls.__name__}")
    try:
        # The mixin's own method, so that a class may call this from its `from_pretrained`.
        load = ModelMixin.from_pretrained.__func__
        model, found = load(cls, str(folder), output_loading_info=True, local_files_only=True, **kwargs)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CodaError(f"{folder} does not hold a whole {cls.__name__}: {first_line(error)}") from error
    on_meta = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    mismatched = [key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"]]
    check_state_keys(folder, {*found["missing_keys"], *on_meta}, found["unexpected_keys"], mismatched)
    return model


def load_state_dict_strict(module: nn.Module, state: Mapping[str, torch.Tensor], source: object) -> None:
    """Copy `state` into `module`, which it must fit exactly.

    Raises:
        CodaError: It does not; names what is missing, left over or misshapen.
    """
    own = module.state_dict()
    misshapen = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    check_state_keys(source, own.keys() - state.keys(), state.keys() - own.keys(), misshapen)
    module.load_state_dict(state)


def check_state_keys(
    source: object, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]
) -> None:
    """Raise a CodaError that names the weights, if there are any to name."""
    lists = {"missing": sorted(missing), "unexpected": sorted(unexpected), "misshapen": sorted(misshapen)}
    said = [f"{_named(names)} {what}" for what, names in lists.items() if names]
    if said:
        raise CodaError(f"{source} does not fit: {'; '.join(said)}")


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a .safetensors file, or from a published pickle, of which nothing is run.

    A dictionary wrapped in `model` or `state_dict`, as trainers leave it, is unwrapped.

    Raises:
        CodaError: The file is damaged or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CodaError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise CodaError(f"{path} is damaged, or holds more than tensors: {first_line(error)}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CodaError(f"{path} holds something other than named tensors")
    return dict(state)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
