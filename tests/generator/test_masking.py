"""Which cells are masked."""

import pytest
import torch

from coda.generator.masking import draw_training, halton_order, masked_after_step
from coda.generator.schedules import MASK_SCHEDULES
from coda.tokenizer.layout import CodeLayout

LAYOUT = CodeLayout([1, 2, (2, 3), 4], 16)


def draw(seed=0, batch=64, **settings):
    return draw_training(LAYOUT, batch, torch.Generator().manual_seed(seed), **settings)


def test_levels_are_masked_whole_as_often_as_asked():
    plain, always, half = (draw(batch=512, mask_all=share) for share in (0.0, 1.0, 0.5))
    assert always.masked.all() and not plain.masked.all()
    for level, (found, before) in enumerate(zip(LAYOUT.split(half.masked), LAYOUT.split(plain.masked), strict=True)):
        whole = found.flatten(1).all(dim=1)
        assert torch.equal(found[~whole], before[~whole])  # all else is drawn as before
        assert level == 0 or 0.45 < whole.float().mean() < 0.8


def test_every_level_draws_its_own_ratio_and_masks_at_least_one_cell():
    levels = [level.flatten(1).float() for level in LAYOUT.split(draw(batch=512).masked)]
    assert min(level.sum(1).min() for level in levels) >= 1
    assert levels[3].sum(1).unique().numel() > 12  # ratios differ between images
    assert torch.stack([levels[1].mean(1), levels[3].mean(1)]).corrcoef()[0, 1].abs() < 0.15


def test_the_same_generator_gives_the_same_draw():
    a, b, c = draw(1, corruption=0.5), draw(1, corruption=0.5), draw(2, corruption=0.5)
    assert torch.equal(a.masked, b.masked) and torch.equal(a.corrupted, b.corrupted)
    assert not torch.equal(a.masked, c.masked)


def test_corruption_and_class_dropout_have_their_share():
    none, some = draw(), draw(batch=4096, corruption=0.4, class_dropout=0.25)
    assert not none.corrupted.any() and not none.unconditional.any()
    assert some.corrupted.float().mean() == pytest.approx(0.2, abs=0.02)  # uniform below 0.4
    assert some.unconditional.float().mean() == pytest.approx(0.25, abs=0.03)


def test_shares_of_a_draw_are_those_of_the_whole_batch():
    whole = draw(batch=8, corruption=0.5)
    part = whole.rows(4, 8)
    assert torch.equal(part.masked, whole.masked[4:]) and torch.equal(part.source_images, whole.source_images[4:])
    masked = torch.stack([level.sum() for level in LAYOUT.split(whole.masked)])
    torch.testing.assert_close(part.mean_masked * 8, masked.float())


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 16, 40])
def test_each_step_fills_at_least_one_cell_and_the_last_all(schedule, steps):
    unfilled = torch.tensor([0, 1, 5, 16])
    left = torch.cat([unfilled[None], masked_after_step(unfilled, steps, schedule)])
    taken = -left.diff(dim=0)
    assert (left[-1] == 0).all()
    assert (taken >= (left[:-1] > 0).long()).all()


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (8, 8), (24, 32)])
def test_halton_order_visits_every_cell_once(grid):
    assert halton_order(grid).sort().values.tolist() == list(range(grid[0] * grid[1]))


def test_halton_order_spreads_its_first_cells():
    first = halton_order((16, 16))[:16]
    quadrants = (first // 16 // 8) * 2 + (first % 16) // 8
    assert quadrants.bincount(minlength=4).min() >= 3
