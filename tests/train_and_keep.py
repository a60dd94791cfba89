"""Small trainings whose checkpoints are kept in OUT/kept: `python train_and_keep.py OUT`, alone or under a launcher.

`test_many_processes` runs it; DEVICE and DTYPE in the environment say where and how. Entropy, corruption, posterior
noise and the adversarial loss are all on. The learning rates are small, because an optimizer that divides by the
gradient's own size enlarges what rounding leaves of it.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import coda.tokenizer  # noqa: F401  isort: skip  before diffusers

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from coda.generator import train_maskgit
from coda.generator.settings import MaskGitSettings
from coda.tokenizer import ContinuousVAE
from coda.tokenizer.adapt import adapt
from coda.tokenizer.code_cache import FORMAT_VERSION, CacheWriter, ShardRows
from coda.tokenizer.foundation.distributed import mean_over_processes
from coda.tokenizer.foundation.launcher import is_main_process, rank_and_world_size
from coda.tokenizer.images import ImageSource
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.quantizer.retrieval import retrieve
from coda.tokenizer.settings import AdaptSettings, RunOptions, VaeSettings
from coda.tokenizer.train_vae import train_vae
from coda.tokenizer.vae.continuous_vae import measure_normalization

STEPS = 20
PHASE = 5  # steps of a phase
KEPT = (1, PHASE + 1, 2 * PHASE, STEPS)  # after the first step of all, after that of a second phase, and near the ends
BATCH = 8
# The bounds on gradients are absolute, so the loss stays as large as theirs assume.
PERCEPTUAL: dict[str, Any] = {"perceptual_weight": 0.1, "perceptual_size": 1}
RUN = RunOptions(device=os.environ.get("DEVICE", "cpu"), dtype=os.environ.get("DTYPE", "auto"), checkpoint_every=1)


class Textures(ImageSource):
    """Images of 16×16 pixels, smooth and of many colors."""

    kind, location = "textures", "memory"

    def __len__(self) -> int:
        return 24

    def read(self, i: int) -> bytes:
        corners = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(corners).resize((16, 16), Image.Resampling.BILINEAR).save(buffer, "PNG")
        return buffer.getvalue()

    def key(self, i: int) -> str:
        return f"texture {i}"

    def label(self, i: int) -> int:
        return -1

    def identity(self, i: int) -> str:
        return str(i)


def make_vae() -> ContinuousVAE:
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    return measure_normalization(ContinuousVAE(autoencoder), [torch.rand(8, 3, 16, 16) * 2 - 1])


def make_cache(path: Path) -> None:
    layout, images = CodeLayout([1, 2, 4], 32), 40
    generator = torch.Generator().manual_seed(1)
    head = {
        "format": "coda code cache",
        "format_version": FORMAT_VERSION,
        "layout": layout.to_json(),
        "tokenizer_fingerprint": "f" * 64,
        "variants": ["original"],
        "source": {"items": images},
        "num_classes": 3,
        "class_names": ["ant", "bee", "cat"],
        "shard_size": images,
        "part": None,
    }
    writer = CacheWriter(path, head, torch.randn(32, 3, generator=generator))
    codes = torch.randint(0, 32, (images, 1, layout.num_tokens), generator=generator)
    rows = ShardRows(codes, torch.arange(images) % 3, torch.arange(images), [str(i) for i in range(images)])
    writer.append(rows, [], images)
    writer.finish()
    writer.close()


def vae(out: Path, architecture: Literal["patch", "kl"] = "patch") -> None:
    settings = VaeSettings(
        architecture=architecture, size=16, factor=2, latent_channels=4, width=16, steps=STEPS + 1, batch_size=BATCH,
        warmup=10, lr=3e-5,
    )  # fmt: skip
    train_vae(Textures(), out, settings, RUN)


def tokenizer(out: Path) -> None:
    settings = AdaptSettings(
        size=16, sides=(1, 2, 4, 8), codebook_size=64, lora_rank=4, steps=STEPS + 1, batch_size=BATCH, warmup=10,
        lr=2e-5, entropy_weight=0.05, adversarial_weight=0.1, adversarial_start=0, **PERCEPTUAL,
        seed=1,  # 0 brings an activation so close to its kink that rounding decides the side
    )  # fmt: skip
    adapt(make_vae(), Textures(), out, settings, RUN)


def phases(out: Path) -> None:
    settings = AdaptSettings(
        size=16, sides=(1, 2, 4, 8), codebook_size=64, lora_rank=4, quantizer_steps=PHASE,
        decoder_steps=PHASE + 1, steps=0, batch_size=BATCH, warmup=10, lr=2e-5, perturbed_codes=0.2,
        seed=2,  # with 0 the gradient of norm_k cancels so far that the order of AVX2's sums shows
        **PERCEPTUAL,
    )  # fmt: skip
    adapt(make_vae(), Textures(), out, settings, RUN)


def generator(out: Path) -> None:
    cache = out.parent / f"cache-{os.environ.get('RANK', 0)}"
    if not cache.exists():
        make_cache(cache)
    settings = MaskGitSettings(
        preset="pocket", hidden_size=16, depth=2, num_heads=2, steps=STEPS + 1, batch_size=BATCH, corruption=0.8,
    )  # fmt: skip
    train_maskgit(cache, out, settings, RUN)


def retrieval(out: Path) -> None:
    """The entropies of a batch of tokens and their gradients, in tiles and in fused kernels."""
    rank, count = rank_and_world_size()
    for backend in ("tiled", "fused"):
        os.environ["CODA_RETRIEVAL"] = backend
        draw = torch.Generator().manual_seed(5)
        q, k, v = (torch.randn(shape, generator=draw).to(RUN.device) for shape in ((96, 8), (150, 8), (150, 4)))
        k.requires_grad_()
        found = retrieve(q[rank::count], k, v, temperature=0.5)
        (found.sample_entropy - 2 * found.batch_entropy).backward()
        assert k.grad is not None
        results = {"exp_avg.keys": mean_over_processes(k.grad), "weight.batch_entropy": found.batch_entropy.detach()}
        if is_main_process():
            (out.parent / "kept").mkdir(exist_ok=True)
            save_file(results, out.parent / "kept" / f"retrieval-{backend}.safetensors")
    del os.environ["CODA_RETRIEVAL"]


WORK: dict[str, Callable[[Path], None]] = {
    "vae": vae,
    "kl": partial(vae, architecture="kl"),
    "tokenizer": tokenizer,
    "phases": phases,
    "generator": generator,
    "retrieval": retrieval,
}


def keep_checkpoints(kept: Path) -> None:
    """Copy some checkpoints before they are put in their place: those of `KEPT` steps."""

    def copy(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(str(arguments[1])).name in [f"step-{step:08d}" for step in KEPT]:
            source, place = Path(str(arguments[0])), Path(str(arguments[1]))
            if (source / "tensors.safetensors").exists():
                kept.mkdir(parents=True, exist_ok=True)
                name = f"{place.parents[1].name}-{int(place.name[5:])}.safetensors"
                shutil.copy(source / "tensors.safetensors", kept / name)

    sys.addaudithook(copy)


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    if is_main_process():
        keep_checkpoints(out / "kept")
    for name in sys.argv[2:] or WORK:
        WORK[name](out / name)


if __name__ == "__main__":
    main()
