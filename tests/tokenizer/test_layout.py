from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coda.tokenizer import CodaError, CodeLayout, default_sides
from coda.tokenizer.quantizer.resampling import downsample, prefix_latents, upsample


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=5), st.integers(1, 3))
def test_split_and_join_are_inverses(sides, batch):
    layout = CodeLayout([*sides, (5, 7)], 10)
    codes = torch.arange(batch * layout.num_tokens).reshape(batch, -1)
    levels = layout.split(codes)
    assert [tuple(level.shape[1:]) for level in levels] == list(layout.sides)
    assert torch.equal(layout.join(levels), codes)
    assert CodeLayout.from_json(layout.to_json()) == layout


def test_codes_are_ordered_level_by_level_row_by_row():
    levels = CodeLayout([1, (2, 3)], 10).split(torch.arange(7)[None])
    assert levels[0].tolist() == [[[0]]]
    assert levels[1].tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.uint32)]
)
def test_the_narrowest_type_on_disk(size, dtype):
    assert CodeLayout([1], size).dtype_on_disk is dtype


def test_published_sides():
    assert default_sides(16, 16) == tuple((s, s) for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert default_sides(32, 32) == tuple((s, s) for s in (1, 2, 3, 4, 6, 9, 13, 18, 24, 32))


@given(st.integers(1, 80), st.integers(1, 80))
def test_default_sides_grow_to_the_grid(height, width):
    sides = default_sides(height, width)
    assert sides[-1] == (height, width)
    assert all(a != b and a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(sides))


@pytest.mark.parametrize(
    ("sides", "size", "words"),
    [
        ([], 4, "at least one"),
        ([4, 2], 4, "largest"),
        ([0, 2], 4, "side 0 is 0"),
        ([1], 1, "codebook size is 1; expected an integer from 2"),
    ],
)
def test_impossible_layouts_are_refused(sides, size, words):
    with pytest.raises(CodaError, match=words):
        CodeLayout(sides, size)


def test_wrong_shapes_are_refused():
    layout = CodeLayout([1, 2], 10)
    with pytest.raises(CodaError, match=r"\(B, 5\) for sides 1 2"):
        layout.split(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(CodaError, match="sides 2 1, expected 1 2"):
        layout.join([torch.zeros(1, 2, 2), torch.zeros(1, 1, 1)])


def test_prefix_latents_add_the_levels_up():
    layout = CodeLayout([1, 2, 4], 10)
    codes, table = torch.randint(10, (2, layout.num_tokens)), torch.randn(10, 3)
    prefixes = prefix_latents(codes, layout, table)
    assert len(prefixes) == 4
    assert not prefixes[0].any()
    last = table[layout.split(codes)[2]].movedim(-1, 1)
    assert torch.equal(prefixes[3], prefixes[2] + last)
    assert torch.equal(prefixes[1], upsample(table[codes[:, :1]].reshape(2, 3, 1, 1), (4, 4)))
    constant = torch.full((1, 2, 6, 6), 3.0)
    assert torch.equal(downsample(constant, (4, 4)), constant[..., :4, :4])
