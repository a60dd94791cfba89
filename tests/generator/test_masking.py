"""Which cells are masked."""

import pytest
import torch

from coda.generator.masking import draw_training, halton_order, masked_after_step
from coda.generator.schedules import MASK_SCHEDULES
from coda.tokenizer.layout import CodeLayout

LAYOUT = CodeLayout([1, 2, (2, 3), 4], 16)


def _draw(seed=0, batch=64, **settings):
    return draw_training(LAYOUT, batch, torch.Generator().manual_seed(seed), **settings)


def test_every_level_of_every_picture_has_something_to_predict():
    counts = torch.stack([level.flatten(1).sum(1) for level in LAYOUT.split(_draw().masked)], dim=1)
    assert counts.min() >= 1
    assert counts[:, 3].unique().numel() > 5  # ratios differ between pictures


def test_levels_draw_their_own_ratio():
    masked = LAYOUT.split(_draw(batch=512).masked)
    shares = torch.stack([masked[1].flatten(1).float().mean(1), masked[3].flatten(1).float().mean(1)])
    assert shares.corrcoef()[0, 1].abs() < 0.15


def test_the_same_generator_gives_the_same_draw():
    a, b, c = _draw(1, corruption=0.5), _draw(1, corruption=0.5), _draw(2, corruption=0.5)
    assert torch.equal(a.masked, b.masked) and torch.equal(a.corrupted, b.corrupted)
    assert not torch.equal(a.masked, c.masked)


def test_corruption_and_class_dropout_are_off_at_zero():
    draw = _draw()
    assert not draw.corrupted.any()
    assert not draw.unconditional.any()


def test_corruption_and_class_dropout_have_their_share():
    draw = _draw(batch=4096, corruption=0.4, class_dropout=0.25)
    assert draw.corrupted.float().mean() == pytest.approx(0.2, abs=0.02)  # uniform below 0.4
    assert draw.unconditional.float().mean() == pytest.approx(0.25, abs=0.03)


def test_rows_of_a_draw_keep_their_masks():
    whole = _draw(batch=8, corruption=0.5)
    part = whole.rows(4, 8)
    assert torch.equal(part.masked, whole.masked[4:])
    assert part.donors.max() < 4


@pytest.mark.parametrize("law", MASK_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 16, 40])
def test_each_step_fills_one_cell_at_least_and_the_last_all(law, steps):
    unfilled = torch.tensor([0, 1, 5, 16])
    left = torch.cat([unfilled[None], masked_after_step(unfilled, steps, law)])
    taken = -left.diff(dim=0)
    assert (left[-1] == 0).all()
    assert (taken >= (left[:-1] > 0).long()).all()


@pytest.mark.parametrize("side", [(1, 1), (2, 3), (8, 8), (24, 32)])
def test_halton_visits_every_cell_once(side):
    order = halton_order(side)
    assert order.sort().values.tolist() == list(range(side[0] * side[1]))


def test_halton_spreads_its_first_cells():
    first = halton_order((16, 16))[:16]
    quadrants = (first // 16 // 8) * 2 + (first % 16) // 8
    assert quadrants.bincount(minlength=4).min() >= 3
