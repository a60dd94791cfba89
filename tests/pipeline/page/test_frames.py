"""Sampling as a film."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from coda.pipeline.page.frames import sample_frames, with_sampling
from coda.tokenizer import CodaError


@pytest.fixture(scope="module")
def sampled(pipeline):
    return with_sampling(pipeline, num_inference_steps=[1, 2, 3, 4], guidance_scale=2.0)


def test_the_last_frame_is_the_image_that_the_pipeline_samples(pipeline, sampled):
    frames = [*sample_frames(sampled, 1, 3)]
    expected = pipeline(1, generator=3, guidance_scale=2.0, num_inference_steps=(1, 2, 3, 4)).images[0]
    assert frames[-1].image == expected
    assert [frame.last for frame in frames] == [False] * 10 + [True]
    redrawn = [*sample_frames(with_sampling(sampled, redraw=0.5), 1, 3)]  # after a level's last step
    assert redrawn[-1].image != redrawn[-2].image


def test_every_level_fills_up(sampled):
    frames = [*sample_frames(sampled, None, 3)][:-1]
    assert [frame.level for frame in frames] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [frame.cells for frame in frames] == [1, 4, 4, 16, 16, 16, 64, 64, 64, 64]
    for level in range(4):
        filled = [frame.filled for frame in frames if frame.level == level]
        assert filled == sorted(filled) and filled[-1] == 4**level


def test_masked_cells_are_under_a_gray_veil(sampled):
    frame = [*sample_frames(sampled, 0, 3)][6]
    assert 0 < frame.filled < frame.cells == 64
    contrast = abs(np.asarray(frame.image, float) - 127.5).max(axis=2).reshape(8, 2, 8, 2).max(axis=(1, 3))
    assert (contrast < 0.31 * 127.5).sum() >= frame.cells - frame.filled


def test_other_settings_leave_the_pipeline_as_it_was(pipeline):
    before = dict(pipeline.scheduler.config)
    halton, random = ([*sample_frames(with_sampling(pipeline, order=o), 0, 3)][-1] for o in ("halton", "random"))
    assert halton.image != random.image
    assert dict(pipeline.scheduler.config) == before


def test_sampling_ends_with_the_iterator(sampled):
    threads = threading.active_count()
    frames = sample_frames(sampled, 0, 3)
    next(frames)
    frames.close()
    assert threading.active_count() == threads


def test_what_goes_wrong_is_raised_where_frames_are_taken(pipeline):
    with pytest.raises(CodaError, match="3 steps are too few"):
        next(sample_frames(with_sampling(pipeline, num_inference_steps=3), 0, 0))
    with pytest.raises(CodaError, match="never seen class 3"):
        next(sample_frames(pipeline, 3, 0))
