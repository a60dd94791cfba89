from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import BrokenImage, decode_image, to_pil, to_uint8, to_unit


def random_image(height: int = 24, width: int = 36) -> Image.Image:
    """Smooth colors that differ in every corner: compression keeps them, and turning or mirroring shows."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 - y)], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().mean().item()


YCBCR_TIFF = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 cannot read such a TIFF")


@pytest.mark.parametrize(
    ("mode", "format", "options", "tolerance"),
    [
        *(("RGB", format, {}, 0) for format in ("PNG", "BMP", "TIFF", "PPM")),
        *((mode, "PNG", {}, 0) for mode in ("L", "1", "P")),
        ("CMYK", "TIFF", {}, 2),
        pytest.param("YCbCr", "TIFF", {}, 2, marks=YCBCR_TIFF),
        *(("RGB", format, {}, 6) for format in ("WEBP", "GIF", "AVIF")),
        ("RGB", "JPEG", {"quality": 95}, 4),
        ("CMYK", "JPEG", {"quality": 95}, 4),  # not a negative
        ("RGB", "JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"}, 6),  # damaged
        ("RGB", "GIF", {"save_all": True, "append_images": [Image.new("RGB", (36, 24))]}, 6),  # the first frame
    ],
)
def test_every_format_and_color_mode_becomes_rgb(
    mode: str, format: str, options: dict[str, Any], tolerance: float
) -> None:
    image = random_image().convert(mode)
    assert distance(decode_image(encoded(image, format, **options)), pixels(image)) <= tolerance


def test_sixteen_bit_gray_keeps_its_shades() -> None:
    shades = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        found = decode_image(encoded(Image.fromarray(shades), format))
        assert torch.equal(found[0], torch.from_numpy(np.round(shades / 257).astype(np.uint8)))
        assert torch.equal(found[0], found[2])


def test_transparency_becomes_white() -> None:
    image = random_image().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.array([0, 255], np.uint8).repeat(18), (24, 1))))
    found = decode_image(encoded(image))
    assert (found[:, :, :18] == 255).all()
    assert torch.equal(found[:, :, 18:], pixels(random_image())[:, :, 18:])
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert decode_image(encoded(palette, transparency=1)).unique().tolist() == [255]
    gray = Image.new("LA", (8, 8), (0, 128))
    assert decode_image(encoded(gray)).unique().tolist() == [127]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_camera_was(orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(random_image().convert(mode), "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert torch.equal(decode_image(content), pixels(upright))


def bomb(side: int) -> bytes:
    """A PNG whose header says that it is large."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_images_of_too_many_pixels_are_refused_but_for_a_jpeg_that_is_made_smaller() -> None:
    png, jpeg, progressive = (
        encoded(random_image(400, 600), format, **options)
        for format, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("JPEG", {"progressive": True}))
    )
    for content, size in [(png, 64), (jpeg, None), (jpeg, 256), (progressive, 64)]:
        with pytest.raises(BrokenImage, match=r"has 600 x 400 pixels; --max-pixels allows more than 239,999"):
            decode_image(content, size, max_pixels=239_999)
        decode_image(content, size, max_pixels=240_000)
    small = decode_image(jpeg, 64, max_pixels=100_000)
    assert distance(small, decode_image(png, 64)) < 2


def test_the_memory_of_a_large_image_is_little_more_than_that_of_its_pixels(
    tmp_path: Path, mebibytes: Callable[..., float]
) -> None:
    Image.new("RGBA", (4096, 4096), (1, 2, 3, 4)).save(tmp_path / "large.png", compress_level=1)
    Image.new("RGBA", (64, 64)).save(tmp_path / "small.png")
    prepare = "from coda.tokenizer.images import decode_image\nfolder = Path(sys.argv[1])\n"
    code = "decode_image((folder / '{}.png').read_bytes(), 32)"
    assert mebibytes(prepare + code.format("small"), code.format("large"), tmp_path) < 10 * 4096**2 / 2**20


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am a text" * 10, "is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a known format"),
        (encoded(random_image(), "JPEG")[:400], "(?i)truncated"),
        (encoded(random_image(), "JPEG")[:-80], "truncated"),
        (encoded(random_image(), "PNG")[:-60], "cannot be decoded"),
        (encoded(random_image(), "WEBP")[:-60], "cannot be decoded"),
        (encoded(random_image(), "GIF")[:-60], "cannot be decoded|truncated"),
        (bomb(9_000), "has 9000 x 9000 pixels; --max-pixels"),
        (bomb(40_000), "more pixels than any"),
        (encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"), "unknown range"),
    ],
)
def test_unreadable_content_is_named_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BrokenImage, match=reason) as error:
        decode_image(content, 16)
    assert "\n" not in str(error.value)


def test_damaged_content_is_read_or_refused() -> None:
    content = encoded(random_image(), "JPEG")
    random = np.random.default_rng(0)
    broken = 0
    for _ in range(200):
        damaged = bytearray(content)
        for place in random.integers(len(content), size=3):
            damaged[place] = random.integers(256)
        try:
            assert decode_image(bytes(damaged), 16).shape == (3, 16, 16)
        except BrokenImage:
            broken += 1
    assert 0 < broken < 200


def adm_center_crop(image: Image.Image, size: int) -> torch.Tensor:
    """guided-diffusion's definition, spelled out: what published figures were cropped with."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return pixels(image)[:, top : top + size, left : left + size]


@pytest.mark.parametrize(("height", "width"), [(24, 36), (91, 40), (16, 16), (17, 99), (32, 32), (9, 13), (130, 131)])
def test_the_center_crop_is_that_of_the_literature(height: int, width: int) -> None:
    image = random_image(height, width)
    assert torch.equal(decode_image(encoded(image), 16), adm_center_crop(image, 16))


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    assert torch.equal(decode_image(encoded(random_image()), (24, 36)), pixels(random_image()))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        found = decode_image(encoded(random_image()), (24, 36), crop="random", generator=generator)
        assert torch.equal(found, pixels(random_image()))


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (24, 30), (50, 13)])
def test_sizes_need_not_be_square(height: int, width: int) -> None:
    for crop in ("center", "random"):
        assert decode_image(encoded(random_image()), (height, width), crop).shape == (3, height, width)


def test_an_image_too_narrow_to_be_resized_is_named() -> None:
    with pytest.raises(BrokenImage, match="too narrow"):
        decode_image(encoded(Image.new("RGB", (1, 60_000))), 256)


def test_random_crops_reach_every_place_and_are_a_function_of_the_generator() -> None:
    content = encoded(random_image(18, 36))
    crops = [decode_image(content, 16, "random", generator=torch.Generator().manual_seed(seed)) for seed in range(64)]
    again = [decode_image(content, 16, "random", generator=torch.Generator().manual_seed(seed)) for seed in range(64)]
    assert all(map(torch.equal, crops, again))
    lefts = {int(crop[0, 0, 0]) for crop in crops}  # red grows from left to right, 255 / 35 per pixel
    assert min(lefts) == 0 and max(lefts) > 240 * 20 / 36 and len(lefts) > 10
    whole = pixels(random_image(18, 36))
    assert all((whole.unfold(1, 16, 1).unfold(2, 16, 1) == crop[:, None, None]).all((0, 3, 4)).any() for crop in crops)


def test_a_large_image_is_scaled_down_before_a_random_crop() -> None:
    found = decode_image(encoded(random_image(160, 160)), 16, "random", generator=torch.Generator().manual_seed(0))
    assert int(found[0].max()) - int(found[0].min()) > 200  # 16 of 18 columns: nearly the whole width


def test_mirroring_happens_half_of_the_time() -> None:
    content = encoded(random_image(16, 16))
    found = [decode_image(content, 16, flip=True, generator=torch.Generator().manual_seed(i)) for i in range(200)]
    assert 70 < sum(torch.equal(image, pixels(random_image(16, 16)).flip(-1)) for image in found) < 130


def test_an_unknown_crop_is_an_error() -> None:
    with pytest.raises(CodaError, match="center or random"):
        decode_image(encoded(random_image()), 16, "middle")


def test_uint8_and_unit_range_convert_without_loss() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)
    unit = to_unit(every)
    assert unit.dtype == torch.float32 and (unit.min(), unit.max()) == (-1, 1)
    assert torch.equal(to_uint8(unit), every)
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.0])).tolist() == [0, 255, 128]
    kept = torch.zeros(3)
    to_unit(kept), to_uint8(kept)
    assert kept.tolist() == [0, 0, 0]
    assert torch.equal(pixels(to_pil(unit)), every) and torch.equal(pixels(to_pil(every)), every)


def test_real_images_decode_to_their_size(shared_data: Path) -> None:
    files = sorted((shared_data / "imagenet-sample-256").glob("*/*.jpg"))[:8]
    for file in files:
        whole = decode_image(file.read_bytes())
        assert whole.shape == (3, 256, 256)
        assert torch.equal(decode_image(file.read_bytes(), 256), whole)
        smaller = pixels(Image.open(file).resize((64, 64), Image.Resampling.BOX))
        assert distance(decode_image(file.read_bytes(), 64), smaller) < 3
