"""Sampling with predictors that are not models: which logits are needed, what is kept, what is random."""

import math

import pytest
import torch

from coda.generator.sampling import ORDERS, draw_codes, sample_codes
from coda.generator.schedules import steps_per_level
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.quantizer.resampling import prefix_latents

LAYOUT = CodeLayout([1, 2, (3, 2), 4], 11)
STEPS = (1, 2, 3, 4)
TABLE = torch.randn(11, 3, generator=torch.Generator().manual_seed(5))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Oracle:
    """Logits that depend on the codes seen so far, on the prefix latent, the level and the cell."""

    def __init__(self, block=1_000):
        self.block, self.calls = block, []
        self.weight = torch.randn(LAYOUT.codebook_size + 1, LAYOUT.codebook_size, generator=generators(9)[0])

    def __call__(self, codes, prefix, level, cells, scale):
        self.calls.append((level, codes.clone(), cells.clone(), scale))
        seen = self.weight[codes].sum(1, keepdim=True)  # (B, 1, K)
        place = torch.sin(cells[..., None] * 1.7 + torch.arange(LAYOUT.codebook_size) + level)
        logits = seen + place + prefix.mean(dim=(1, 2, 3))[:, None, None]
        return logits.flatten(0, 1).split(self.block)


def sample(predict=None, seeds=(0, 1, 2), **settings):
    return sample_codes(
        predict or Oracle(), LAYOUT, TABLE, settings.pop("steps", STEPS), generators(*seeds), **settings
    )


@pytest.mark.parametrize("order", ORDERS)
def test_neither_batch_size_nor_order_changes_an_image(order):
    together = sample(order=order, seeds=(3, 1, 2))
    assert together.shape == (3, LAYOUT.num_tokens) and together.min() >= 0 and together.max() < LAYOUT.codebook_size
    for place, seed in enumerate((3, 1, 2)):
        assert torch.equal(sample(order=order, seeds=(seed,))[0], together[place])
    assert torch.equal(sample(order=order, seeds=(1, 2, 3)), together[[1, 2, 0]])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("order", ORDERS)
def test_known_codes_of_one_image_change_no_other(order):
    codes = torch.zeros(2, LAYOUT.num_tokens, dtype=torch.long)
    keep = torch.zeros_like(codes).bool()
    keep[0, :7] = True
    edited = sample(order=order, seeds=(4, 5), known=(codes, keep))
    assert torch.equal(edited[1], sample(order=order, seeds=(5,))[0])


def test_blocks_of_logits_change_nothing():
    assert torch.equal(sample(Oracle(block=1)), sample(Oracle(block=7)))


@pytest.mark.parametrize("order", ORDERS)
def test_known_codes_stay_and_are_never_asked(order):
    given = torch.randint(0, 11, (2, LAYOUT.num_tokens))
    keep = torch.rand(2, LAYOUT.num_tokens) < 0.6
    keep[1] = True
    predict = Oracle()
    assert torch.equal(sample(predict, seeds=(1,), known=(given[1:], keep[1:])), given[1:]) and not predict.calls
    codes = sample(predict, seeds=(0, 1), order=order, known=(given, keep))
    assert torch.equal(codes[keep], given[keep])
    for level, _, cells, _ in predict.calls:
        asked = cells[0, : int((~keep[0, LAYOUT.offsets[level] : LAYOUT.offsets[level + 1]]).sum())]
        assert not keep[0, LAYOUT.offsets[level] :][asked].any()


def test_wrong_known_codes_are_refused():
    ok = torch.zeros(1, LAYOUT.num_tokens, dtype=torch.long)
    with pytest.raises(CodaError, match="one row per image"):
        sample(seeds=(0, 1), known=(ok, ok.bool()))
    with pytest.raises(CodaError, match="must be in"):
        sample(seeds=(0,), known=(ok + 11, ok == 0))


@pytest.mark.parametrize("order", ["halton", "random"])
def test_planned_orders_ask_only_for_what_they_fill(order):
    predict = Oracle()
    sample(predict, seeds=(0,), order=order)
    assert sum(cells.shape[1] for _, _, cells, _ in predict.calls) == LAYOUT.num_tokens


def test_the_most_confident_cell_comes_first():
    def predict(codes, prefix, level, cells, scale):
        logits = torch.zeros(*cells.shape, 11)
        logits[..., 0] = 1.0 + cells.float()  # the later the cell, the more confident
        return [logits.flatten(0, 1)]

    seen = []
    sample(predict, seeds=(0,), temperature=0, confidence_noise=0, on_step=lambda s: seen.append(s.codes[0, -16:]))
    filled = seen[-3] != 11  # after the second of the last level's four steps
    assert filled[-int(filled.sum()) :].all() and 0 < filled.sum() < 16


def test_steps_are_reported_in_order_and_may_replace_codes():
    seen = []

    def on_step(step):
        seen.append(step)
        return step.codes.masked_fill(step.codes == 3, 4)

    codes = sample(on_step=on_step)
    expected = [(level, step, sum(STEPS[:level]) + step, 10) for level in range(4) for step in range(STEPS[level])]
    assert [(step.level, step.step, step.index, step.total) for step in seen] == expected
    assert not (codes == 3).any()
    prefixes = prefix_latents(codes, LAYOUT, TABLE)
    for step in seen:
        torch.testing.assert_close(step.prefix, prefixes[step.level])


def test_a_level_ends_with_its_values_in_the_prefix_and_may_change_the_next():
    ends = []

    def on_level_end(state):
        ends.append((state.level, state.index))
        torch.testing.assert_close(
            state.prefix, prefix_latents(state.codes.clamp(max=10), LAYOUT, TABLE)[state.level + 1]
        )
        codes = state.codes.clone()
        codes[:, LAYOUT.offsets[state.level + 1] :] = 7
        return codes

    codes = sample(on_level_end=on_level_end)
    assert ends == [(0, 0), (1, 2), (2, 5), (3, 9)]
    assert (codes[:, 1:] == 7).all()


def test_guidance_is_asked_by_progress():
    predict = Oracle()
    sample(predict, seeds=(0,), guidance=lambda progress: 1 + progress)
    scales = [scale for *_, scale in predict.calls]
    assert scales == sorted(scales)
    assert scales[0] == pytest.approx(1 + 0.5 / 10)
    assert scales[-1] == pytest.approx(1 + 9.5 / 10)


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.5, 0.1, 0.15, 0.25]).log().expand(20_000, 4)
    uniform = torch.rand(20_000, generator=generators(0)[0])
    codes, log_p = draw_codes(logits, uniform, temperature=1.0)
    shares = codes.bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.1, 0.15, 0.25]), atol=0.015, rtol=0)
    torch.testing.assert_close(log_p, logits.gather(1, codes[:, None])[:, 0])


def test_temperature_zero_takes_the_most_likely_code_and_low_sharpens():
    logits = torch.tensor([[0.0, 1.0, 0.5]]).expand(5_000, 3)
    uniform = torch.rand(5_000, generator=generators(0)[0])
    assert (draw_codes(logits, uniform, 0.0)[0] == 1).all()
    p = torch.tensor([0.0, 1.0, 0.5]).div(0.3).softmax(0)
    assert (draw_codes(logits, uniform, 0.3)[0] == 1).float().mean() == pytest.approx(float(p[1]), abs=0.02)


def test_a_code_without_mass_is_never_drawn():
    logits = torch.full((3, 100), -math.inf)
    logits[:, 40] = 0
    codes, _ = draw_codes(logits, torch.tensor([0.0, 0.5, 1 - 2**-24]), 1.0)
    assert codes.tolist() == [40, 40, 40]


def test_only_the_most_likely_codes_are_drawn():
    logits = torch.tensor([0.4, 0.05, 0.3, 0.25]).log().expand(2_000, 4)
    uniform = torch.rand(2_000, generator=generators(0)[0])
    for settings, left in ((dict(top_k=2), {0, 2}), (dict(top_p=0.8), {0, 2, 3}), (dict(top_p=0.7), {0, 2})):
        codes, log_p = draw_codes(logits, uniform, 1.0, **settings)
        assert set(codes.tolist()) == left
        kept = logits[0, sorted(left)].softmax(0)
        torch.testing.assert_close(log_p[codes == 0][0].exp(), kept[0])
    assert (draw_codes(logits, uniform, 1.0, top_p=1e-6)[0] == 0).all()


def test_the_least_likely_codes_of_a_level_are_drawn_again_without_guidance():
    predict = Oracle()
    codes = sample(predict, redraw=0.25, guidance=lambda progress: 3.0)
    again = [call for call in predict.calls if call[-1] == 1.0]
    assert [(level, cells.shape[1]) for level, _, cells, _ in again] == [(1, 1), (2, 1), (3, 4)]
    for _, seen, cells, _ in again:
        assert ((seen == 11).sum(dim=1) == cells.shape[1]).all() and (seen.gather(1, cells) == 11).all()
    assert codes.max() < 11 and torch.equal(sample(redraw=0.25, seeds=(1,)), sample(redraw=0.25)[1:2])
    known = torch.zeros(2, LAYOUT.num_tokens, dtype=torch.long)
    keep = torch.tensor([[True] * LAYOUT.num_tokens, [False] * LAYOUT.num_tokens])
    edited = sample(seeds=(4, 5), known=(known, keep), redraw=0.5)
    assert torch.equal(edited, torch.cat([known[:1], sample(seeds=(5,), redraw=0.5)]))


def test_an_unknown_order_is_named():
    with pytest.raises(CodaError, match="'snake' is not one of confidence"):
        sample(order="snake")


def test_more_steps_than_cells_are_harmless():
    assert sample(steps=(3, 9, 2, 40)).max() < 11
    assert steps_per_level((3, 9, 2, 40), LAYOUT) == (3, 9, 2, 40)
