"""Named settings."""

import pytest
import torch

from coda.generator.presets import PRESETS
from coda.generator.settings import MaskGitSettings
from coda.generator.transformer import MaskGitTransformer
from coda.tokenizer.foundation.errors import CodaError


def count(preset, codebook_size):
    size = MaskGitSettings(preset=preset)
    with torch.device("meta"):
        model = MaskGitTransformer(
            [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], codebook_size, 16, 1000, size.hidden_size, size.depth, size.num_heads
        )
    return sum(p.numel() for p in model.parameters())


def test_large_and_paper_have_the_size_of_the_papers_model():
    assert count("large", 16_384) == count("paper", 16_384) == pytest.approx(195e6, rel=0.01)


def test_presets_grow_and_have_heads_of_the_usual_width():
    sizes = [count(preset, 4096) for preset in PRESETS]
    assert sizes == sorted(sizes)
    assert sum(15e6 < size < 30e6 for size in sizes) == 2
    assert {p["hidden_size"] // p["num_heads"] for p in PRESETS.values()} <= {32, 64}


def test_single_numbers_replace_those_of_the_preset():
    size = MaskGitSettings(preset="small", hidden_size=320, depth=3)
    assert (size.hidden_size, size.depth, size.num_heads) == (320, 3, 5)
    assert MaskGitSettings(preset="small", num_heads=8).num_heads == 8


def test_a_preset_also_sets_how_long_and_how_fast_to_train():
    settings = MaskGitSettings(preset="paper", lr=1e-4)
    assert (settings.steps, settings.batch_size, settings.lr, settings.warmup) == (500_000, 2048, 1e-4, 1000)
    assert MaskGitSettings(steps=100).warmup == 5 and MaskGitSettings().steps == 10_000


def test_the_ema_may_be_given_as_a_half_life_in_images():
    settings = MaskGitSettings(batch_size=50, ema_half_life=5000)
    assert settings.ema_decay**100 == pytest.approx(0.5)


@pytest.mark.parametrize("asked", [dict(preset="huge"), dict(preset="small", num_heads=7)])
def test_what_does_not_exist_or_fit_is_refused(asked):
    with pytest.raises(CodaError):
        MaskGitSettings(**asked)
