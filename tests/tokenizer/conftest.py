"""Small autoencoders, one of every kind, for the tests of the tokenizer."""

from __future__ import annotations

import io
import os
import signal
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from coda.tokenizer import CodaTokenizer, ResidualQuantizer, tokenize_dataset
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import ImageSource
from coda.tokenizer.settings import RunOptions, TokenizeSettings
from coda.tokenizer.tokenize_dataset import TokenizeSummary
from coda.tokenizer.vae.autoencoders import from_config
from coda.tokenizer.vae.continuous_vae import ContinuousVAE


@pytest.fixture
def tokenizer(small_vae: ContinuousVAE) -> CodaTokenizer:
    """16 × 16 pixels, 74 codes of 300."""
    return CodaTokenizer(small_vae, ResidualQuantizer(4, 300, [1, 3, 8])).eval()


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start_and_kill(work: Callable[[], object], folder: Path, killed_at: int | None = None, **environment: str) -> int:
    """Do `work` in another process, with status 0 if it comes to its end and 3 if it fails.

    It is killed as kill -9 does when it is about to open, rename or remove something in `folder` for the
    `killed_at`-th time: every moment at which what lies there changes is one of those.
    """
    child = os.fork()
    if child:
        return child
    os.environ.update(environment)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    left = iter(range(killed_at or 10**9, 0, -1))

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        touched = event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and (
            str(folder) in str(arguments[0]) or not os.path.isabs(str(arguments[0]))  # rmtree names files relatively
        )
        if touched and next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    finish(work, count)


def finish(work: Callable[[], object], hook: Callable[[str, tuple[Any, ...]], None]) -> NoReturn:
    """Do `work` under the hook and end the process, with status 0 or 3."""
    sys.addaudithook(hook)
    try:
        work()
    except (CodaError, OSError) as error:
        print(error)
        sys.stdout.flush()
        os._exit(3)
    os._exit(0)


def tokenize(tokenizer: Any, data: Any, out: Any, **settings: Any) -> TokenizeSummary:
    """`tokenize_dataset` with fields of its settings and of its run options by name."""
    return tokenize_dataset(
        tokenizer, data, out, TokenizeSettings.from_mapping(settings), RunOptions.from_mapping(settings)
    )


_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
_DC = {
    **{f"{half}_block_types": ("ResBlock", "EfficientViTBlock") for half in ("encoder", "decoder")},
    **{f"{half}_block_out_channels": (8, 16) for half in ("encoder", "decoder")},
    **{f"{half}_layers_per_block": (1, 1) for half in ("encoder", "decoder")},
    **{f"{half}_qkv_multiscales": ((), (5,)) for half in ("encoder", "decoder")},
}
SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {**_BLOCKS, "scaling_factor": 0.4, "shift_factor": 0.1},
    "AutoencoderKLFlux2": _BLOCKS,
    "AsymmetricAutoencoderKL": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "down_block_out_channels": (32, 32),
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "up_block_out_channels": (32, 32),
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    "AutoencoderTinyMidNorm": {"latent_channels": 5},
    "AutoencoderPatch": {"latent_channels": 4, "block_out_channels": (16, 32), "layers_per_block": (1, 1)},
    "AutoencoderDC": {"latent_channels": 4, "attention_head_dim": 8, "scaling_factor": 0.4, **_DC},
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "sample_size": 64,
        "scaling_factor": 0.75,
    },
    "AutoencoderKLKVAE": {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "z_channels": 4, "ch_mult": (1, 2)},
    "AutoencoderRAE": {
        "encoder_type": "mae",
        "encoder_hidden_size": 64,
        "encoder_patch_size": 8,
        "encoder_num_hidden_layers": 1,
        "encoder_input_size": 32,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "patch_size": 8,
    },
}


class Ramps(ImageSource):
    """Color ramps, one per item; reading is interrupted at the given number of reads."""

    kind, location = "ramps", "memory"

    def __init__(self, count: int = 24, size: int = 8, interrupt_at: int | None = None) -> None:
        self.count, self.size, self.interrupt_at, self.reads = count, size, interrupt_at, 0

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> bytes:
        self.reads += 1
        if self.reads == self.interrupt_at:
            raise KeyboardInterrupt
        corners = np.random.default_rng(i).uniform(0, 255, (2, 2, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(corners).resize((self.size, self.size), Image.Resampling.BILINEAR).save(buffer, "PNG")
        return buffer.getvalue()

    def key(self, i: int) -> str:
        return f"ramp {i}"

    def label(self, i: int) -> int:
        return -1

    def identity(self, i: int) -> str:
        return str(i)


@pytest.fixture(scope="session")
def ramps() -> type[Ramps]:
    """Makes sources of color ramps: ramps(count=24, size=8, interrupt_at=None)."""
    return Ramps


@pytest.fixture(params=list(SMALL))
def kind(request: pytest.FixtureRequest) -> str:
    """Name of every class of autoencoder that can be adapted."""
    return request.param


@pytest.fixture(scope="session")
def small_autoencoder() -> Callable[..., Any]:
    """Makes a small autoencoder with random weights: class name, then what differs from the usual."""
    return lambda name="AutoencoderKL", **changes: from_config({"_class_name": name, **SMALL[name], **changes}).eval()


@pytest.fixture
def small_vae(small_autoencoder: Callable[..., Any]) -> ContinuousVAE:
    """An AutoencoderKL of factor 2 with 4 latent channels, frozen, as load_vae gives it."""
    return ContinuousVAE(small_autoencoder(), [0.1], [0.4]).requires_grad_(False).eval()


@pytest.fixture(scope="session")
def golden_quantizers() -> Path:
    """Golden values of the published quantizer that ship with the tests."""
    return Path(__file__).resolve().parents[1] / "data" / "quantizer"


@pytest.fixture
def images() -> torch.Tensor:
    """Three images of 32 × 32 in [-1, 1]."""
    return torch.rand(3, 3, 32, 32) * 2 - 1


@pytest.fixture
def odd_items() -> dict[str, tuple[bytes, Image.Image | str]]:
    """Files as one finds them, in the order of their names: what is in them, and the image or what is wrong."""
    noise = np.random.default_rng(0)

    def random_image() -> Image.Image:
        return Image.fromarray(noise.integers(256, size=(20, 16, 3), dtype=np.uint8))

    def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    def read(content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content))

    deep = noise.integers(65536, size=(20, 16)).astype(np.uint16)
    see_through = random_image().quantize(16)
    holes = np.asarray(see_through) == 3
    over_white = np.array(see_through.convert("RGB"))
    over_white[holes] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    rotated = saved(random_image(), "JPEG", exif=turned)
    animated = saved(random_image(), "GIF", save_all=True, append_images=[random_image()])
    cmyk = random_image().convert("CMYK")
    plain = [random_image() for _ in range(10)]
    found: list[tuple[str, bytes, Image.Image | str]] = [
        ("plain.png", saved(plain[0]), plain[0]),
        ("truncated.jpg", saved(random_image(), "JPEG")[:-60], "truncated"),
        ("named-otherwise.JPEG", saved(plain[1]), plain[1]),
        ("zero-bytes.jpg", b"", "is empty"),
        ("cmyk.tif", saved(cmyk, "TIFF"), cmyk.convert("RGB")),
        ("sixteen-bits.png", saved(Image.fromarray(deep)), Image.fromarray(np.round(deep / 257).astype(np.uint8))),
        ("palette.png", saved(see_through, transparency=3), Image.fromarray(over_white)),
        ("bomb.png", _bomb(), "pixels"),
        ("text.jpg", b"I am no image at all. " * 9, "is not an image of a known format"),
        ("rotated.jpg", rotated, ImageOps.exif_transpose(read(rotated))),
        ("animated.gif", animated, read(animated).convert("RGB")),
        ("cut.png", saved(random_image())[:-80], "cannot be decoded"),
        *((f"plain-{i}.png", saved(image), image) for i, image in enumerate(plain[2:], 1)),
    ]
    return {f"{i:02d}-{name}": (content, inside) for i, (name, content, inside) in enumerate(found)}


def _bomb(side: int = 40_000) -> bytes:
    """A small PNG that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
