"""Named sizes."""

import pytest
import torch

from coda.generator.presets import PRESETS, resolve_preset
from coda.generator.transformer import MaskGitTransformer
from coda.tokenizer.foundation.errors import CodaError


def count(preset, codebook_size):
    size = PRESETS[preset]
    with torch.device("meta"):
        model = MaskGitTransformer(
            [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], codebook_size, 16, 1000, size.hidden_size, size.depth, size.num_heads
        )
    return sum(p.numel() for p in model.parameters())


def test_large_has_the_size_of_the_papers_model():
    assert count("large", 16_384) == pytest.approx(195e6, rel=0.01)


def test_presets_grow_and_have_heads_of_the_usual_width():
    sizes = [count(preset, 4096) for preset in PRESETS]
    assert sizes == sorted(sizes)
    assert {p.hidden_size // p.num_heads for p in PRESETS.values()} <= {32, 64}


def test_single_numbers_replace_those_of_the_preset():
    size = resolve_preset("small", hidden_size=320, depth=3)
    assert (size.hidden_size, size.depth, size.num_heads) == (320, 3, 5)
    assert resolve_preset("small", num_heads=8).num_heads == 8


@pytest.mark.parametrize("asked", [dict(preset="huge"), dict(preset="small", num_heads=7)])
def test_what_does_not_exist_or_fit_is_refused(asked):
    with pytest.raises(CodaError):
        resolve_preset(**asked)
