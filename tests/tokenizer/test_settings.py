"""A setting is declared once: as a field of a settings class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from coda.generator.settings import MaskGitSettings
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.settings import Count, Fraction, Settings, Side, Size, setting
from coda.tokenizer.settings import AdaptSettings, RunOptions, VaeSettings


@dataclass(frozen=True)
class DenoiseSettings(Settings):
    """Settings of a training that does not exist."""

    steps: Count = setting(100, "Optimizer steps.")
    noise: Fraction = setting(0.5, "Share of the noise.")
    law: Literal["linear", "cosine"] = setting("linear", "Schedule of the noise.")
    size: Size | None = setting(None, "Image size in pixels; by default that of the first image.")
    sides: tuple[Side, ...] = setting((1, 2), "Sides of the levels.")
    mirror: bool = setting(False, "Also mirror the images.")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, {"steps": 100, "noise": 0.5, "law": "linear", "size": None, "sides": (1, 2), "mirror": False}),
        ({"noise": 1, "size": "4x8"}, {"noise": 1.0, "size": (4, 8)}),
        ({"size": (8, 8), "sides": [1, [2, 3]]}, {"size": 8, "sides": (1, (2, 3))}),
    ],
)
def test_values_are_normalized(given: dict[str, Any], taken: dict[str, Any]) -> None:
    settings = DenoiseSettings(**given)
    assert {name: getattr(settings, name) for name in taken} == taken
    assert DenoiseSettings.from_mapping({**given, "unknown": 1}) == settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps 0 is not a whole number, at least 1"),
        ({"steps": 1.5}, "steps 1.5 is not a whole number"),
        ({"steps": True}, "steps True"),
        ({"steps": None}, "steps None"),
        ({"noise": 1.5}, "noise 1.5 is not a number, at least 0 and at most 1"),
        ({"noise": float("nan")}, "noise nan"),
        ({"law": "square"}, "law 'square' is not one of linear, cosine"),
        ({"size": "4x"}, "size '4x' is not a number of pixels"),
        ({"sides": (1, 0)}, "sides"),
        ({"mirror": "yes"}, "mirror 'yes' is not true or false"),
    ],
)
def test_wrong_values_are_refused_with_what_would_be_right(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CodaError, match=message):
        DenoiseSettings(**wrong)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (VaeSettings, {"architecture": "big"}), (AdaptSettings, {"norm": "batch"}), (RunOptions, {"dtype": "float16"}),
        (RunOptions, {"device": "abacus"}), (RunOptions, {"checkpoint_every": 0}),
        *((MaskGitSettings, wrong) for wrong in (
            {"preset": "giant"}, {"corruption": 1.5}, {"mask_law": "sine"}, {"lr_decay": "step"}, {"steps": 0},
        )),
    ],
)  # fmt: skip
def test_settings_of_the_trainings_are_checked(settings: type[Settings], wrong: dict[str, Any]) -> None:
    with pytest.raises(CodaError, match=next(iter(wrong))):
        settings(**wrong)
