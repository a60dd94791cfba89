"""Codes and confidences of every level as images."""

from __future__ import annotations

import numpy as np
import torch

from coda.pipeline.page.level_images import code_colors, confidences, draw_codes, draw_confidences


def test_similar_codes_have_similar_colors():
    values = torch.linspace(-3, 3, 9)[:, None] * torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    colors = code_colors(values)
    assert colors.shape == (9, 3) and colors.min() == -1 and colors.max() == 1
    assert torch.equal(colors[:, 0], torch.linspace(-1, 1, 9))
    assert code_colors(torch.randn(5, 2)).shape == (5, 3)  # fewer channels than colors


def test_a_cell_has_the_color_of_its_code(pipeline):
    layout, table = pipeline.tokenizer.layout, pipeline.tokenizer.value_table()
    same = draw_codes(torch.full((85,), 7), layout, table)
    color = ((code_colors(table)[7] + 1) * 127.5).round().byte().numpy()
    assert (np.asarray(same).reshape(-1, 3) == color).all(axis=1).mean() > 0.8  # the rest is labels and gaps
    assert same.width > 4 * 128
    one = draw_codes(torch.tensor([7, 1, 2, 3, 4]), layout, table)
    assert one.width < same.width  # two levels


def test_confidences_are_probabilities_that_know_the_earlier_levels(pipeline):
    codes = pipeline([0, 1], generator=0, output_type="codes").images
    layout = pipeline.tokenizer.layout
    one, other = (confidences(pipeline, row, 0) for row in codes)
    assert [tuple(level.shape) for level in one] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert all(((level >= 1 / 32) & (level <= 1)).all() for level in one)
    assert torch.equal(one[0], other[0]) and not torch.equal(one[3], other[3])
    assert not torch.equal(one[0], confidences(pipeline, codes[0], 1)[0])
    drawn = np.asarray(draw_confidences(one, layout).convert("RGB"))
    assert np.ptp(drawn, axis=2).max() == 0  # gray
