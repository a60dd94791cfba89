"""What a browser sends."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from coda.pipeline.page.uploads import brushed_mask, easel_size, on_easel, read_upload
from coda.tokenizer import CodaError


def test_an_upload_is_scaled_and_cropped(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (60, 40), "red").save(path)
    image = read_upload(str(path), (16, 24), 10_000)
    assert image.size == (24, 16) and image.getpixel((3, 3))[0] > 250


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"words", "photo.png is not an image of a known format"),
        (b"", "photo.png is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "photo.png "),
    ],
)
def test_a_bad_upload_is_a_line_without_the_place(content, says, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(CodaError, match=f"^{says}"):
        read_upload(str(path), (16, 16), 10_000)


def test_too_many_pixels_and_no_upload(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (200, 200)).save(path)
    with pytest.raises(CodaError, match=r"^large\.png has 200 x 200 pixels"):
        read_upload(str(path), (16, 16), 10_000)
    with pytest.raises(CodaError, match="choose an image first"):
        read_upload(None, (16, 16), 10_000)


def test_the_mask_is_where_layers_are_painted():
    layers = [Image.new("RGBA", (32, 32)) for _ in range(2)]
    assert brushed_mask({"layers": layers}) is None and brushed_mask(None) is None
    ImageDraw.Draw(layers[0]).rectangle((2, 3, 7, 9), fill="#ff7a00")
    ImageDraw.Draw(layers[1]).rectangle((20, 3, 27, 9), fill="#000000")
    mask = brushed_mask({"layers": layers})
    assert mask.size == (32, 32) and mask.getbbox() == (2, 3, 28, 10)
    assert set(mask.tobytes()) == {0, 255}


def test_small_images_are_brushed_enlarged():
    image = on_easel(Image.new("RGB", (24, 16)))
    assert image.size == easel_size(16, 24) == (528, 352)
    assert easel_size(1024, 1024) == (1024, 1024)
