"""Numbers as functions of progress."""

import pytest
import torch

from coda.generator.schedules import MASK_SCHEDULES, guidance_scale_at, mask_ratio, steps_per_level
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout

LAYOUT = CodeLayout([1, 2, 3, 4, 6, 8], 64)


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_mask_ratio_falls_from_all_to_none(schedule):
    ratio = mask_ratio(torch.linspace(0, 1, 50, dtype=torch.float64), schedule)
    assert ratio[0] == 1
    assert ratio[-1].abs() < 1e-12
    assert (ratio.diff() < 0).all()


def test_an_unknown_mask_schedule_is_named():
    with pytest.raises(CodaError, match="'cosin' is not one of cosine"):
        mask_ratio(torch.tensor(0.5), "cosin")


def test_steps_per_level():
    assert steps_per_level(16, LAYOUT) == (1, 1, 2, 3, 4, 5)
    assert steps_per_level(6, LAYOUT) == (1,) * 6
    assert steps_per_level(1000, LAYOUT) == (1, 4, 9, 16, 36, 64), "as many as there are cells"
    assert steps_per_level([1, 1, 1, 2, 2, 9], LAYOUT) == (1, 1, 1, 2, 2, 9)
    for total in range(6, 60):
        shared = steps_per_level(total, LAYOUT)
        assert sum(shared) == total
        assert list(shared) == sorted(shared)


def test_equal_shares_leave_what_is_over_to_the_coarser_levels():
    assert steps_per_level(16, LAYOUT, "equal") == (1, 3, 3, 3, 3, 3)
    assert steps_per_level(18, LAYOUT, "equal") == (1, 4, 4, 3, 3, 3)
    assert steps_per_level(8, LAYOUT, "equal") == (1, 2, 2, 1, 1, 1)
    assert steps_per_level(1000, LAYOUT, "equal") == (1, 4, 9, 16, 36, 64)
    with pytest.raises(CodaError, match="step share 'more' is not one of sqrt, equal"):
        steps_per_level(16, LAYOUT, "more")


@pytest.mark.parametrize("steps", [5, 0, [1, 2], [1, 1, 1, 1, 1, 0], 6.5, [1.5] * 6, [10**9] * 6])
def test_wrong_steps_are_refused(steps):
    with pytest.raises(CodaError, match="6 levels"):
        steps_per_level(steps, LAYOUT)


def test_guidance_acts_in_its_interval_only():
    assert [guidance_scale_at(p, 3.0, interval=(0.25, 0.5)) for p in (0.2, 0.25, 0.5, 0.51)] == [1, 3, 3, 1]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_guidance_grows_over_its_interval(schedule):
    scales = [guidance_scale_at(p, 3.0, schedule, (0.2, 0.8)) for p in (0.2, 0.4, 0.6, 0.8)]
    assert scales == sorted(scales)
    assert scales[0] == pytest.approx(1)
    assert scales[-1] == pytest.approx(3)
