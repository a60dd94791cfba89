"""Sampling as a film."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from coda.generator.settings import SamplingSettings
from coda.pipeline.page.frames import sample_frames, with_order
from coda.tokenizer import CodaError

SETTINGS = SamplingSettings(steps=(1, 2, 3, 4), guidance=2.0, seed=3)


def test_the_last_frame_is_the_image_that_the_pipeline_samples(pipeline):
    frames = [*sample_frames(pipeline, 1, SETTINGS)]
    expected = pipeline(1, generator=3, guidance_scale=2.0, num_inference_steps=(1, 2, 3, 4)).images[0]
    assert frames[-1].image == expected
    assert [frame.last for frame in frames] == [False] * 9 + [True]


def test_every_level_fills_up(pipeline):
    frames = [*sample_frames(pipeline, None, SETTINGS)]
    assert [frame.level for frame in frames] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [frame.cells for frame in frames] == [1, 4, 4, 16, 16, 16, 64, 64, 64, 64]
    for level in range(4):
        filled = [frame.filled for frame in frames if frame.level == level]
        assert filled == sorted(filled) and filled[-1] == 4**level


def test_masked_cells_are_under_a_gray_veil(pipeline):
    frame = [*sample_frames(pipeline, 0, SETTINGS)][6]
    assert 0 < frame.filled < frame.cells == 64
    contrast = abs(np.asarray(frame.image, float) - 127.5).max(axis=2).reshape(8, 2, 8, 2).max(axis=(1, 3))
    assert (contrast < 0.31 * 127.5).sum() >= frame.cells - frame.filled


def test_another_order_leaves_the_pipeline_as_it_was(pipeline):
    before = dict(pipeline.scheduler.config)
    images = {
        order: [*sample_frames(with_order(pipeline, order), 0, SETTINGS)][-1].image for order in ("halton", "random")
    }
    assert images["halton"] != images["random"]
    assert dict(pipeline.scheduler.config) == before


def test_sampling_ends_with_the_iterator(pipeline):
    threads = threading.active_count()
    frames = sample_frames(pipeline, 0, SETTINGS)
    next(frames)
    frames.close()
    assert threading.active_count() == threads


def test_what_goes_wrong_is_raised_where_frames_are_taken(pipeline):
    with pytest.raises(CodaError, match="3 steps are too few"):
        next(sample_frames(pipeline, 0, SamplingSettings(steps=(3,))))
    with pytest.raises(CodaError, match="never seen class 3"):
        next(sample_frames(pipeline, 3, SETTINGS))
