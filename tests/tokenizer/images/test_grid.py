"""Images side by side."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from coda.tokenizer.images.grid import labelled_grid

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (0, 255, 255)]


def _plain(color):
    return Image.new("RGB", (150, 140), color)


def _areas(grid):
    return {color: count for count, color in grid.getcolors(maxcolors=1 << 20)}


def test_every_image_is_there_whole_and_in_reading_order():
    grid = labelled_grid([_plain(color) for color in COLORS], columns=2)
    assert grid.width < 3 * 150 and grid.height > 3 * 140
    assert all(_areas(grid)[color] == 150 * 140 for color in COLORS)
    pixels = np.asarray(grid)
    first = [np.argwhere((pixels == color).all(-1))[0].tolist() for color in COLORS]
    assert first == sorted(first)


def test_labels_are_written_and_hide_no_pixel():
    images = [_plain(color) for color in COLORS[:2]]
    bare, labelled = labelled_grid(images), labelled_grid(images, ["cat", "golden retriever " * 20])
    assert labelled.width == bare.width and labelled.height > bare.height
    assert all(_areas(labelled)[color] == 150 * 140 for color in COLORS[:2])
    other = labelled_grid(images, ["dog", "golden retriever " * 20])
    assert other.tobytes() != labelled.tobytes()


def test_a_label_that_is_a_little_too_long_is_read_to_its_end():
    image = [_plain(COLORS[0]).resize((128, 128))]
    one, other = (labelled_grid(image, [f"golden retriever, seed {seed}"]).tobytes() for seed in (11, 12))
    assert one != other


def test_small_images_are_enlarged_pixel_by_pixel():
    small = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    grid = np.asarray(labelled_grid([small]))
    assert (grid[4:-4:2, 4:-4:2] == np.asarray(small)).all()
    assert labelled_grid([small], smallest=1).size == (72, 72)


def test_a_grid_needs_images_and_a_label_each():
    with pytest.raises(ValueError, match="0 images"):
        labelled_grid([])
    with pytest.raises(ValueError, match="1 images and 2 labels"):
        labelled_grid([_plain(COLORS[0])], ["a", "b"])
