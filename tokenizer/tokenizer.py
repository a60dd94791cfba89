"""Images ⇄ codes: a VAE and a residual quantizer, saved and loaded as one.

    directory/
      vae/                 a ContinuousVAE, its LoRA merged
      quantizer/           a ResidualQuantizer
      README.md            model card
      coda_tokenizer.json  what they are together, and their fingerprint; written last

Shapes: B images of H × W pixels, T codes each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .fingerprint import MANIFEST, fingerprint_of, saved_fingerprint
from .foundation.atomic_io import write_bytes, write_json
from .foundation.errors import CodaError
from .foundation.hub import fetch, local_path
from .foundation.strict_loading import load_strictly
from .layout import CodeLayout, SizedCodes
from .quantizer.residual_quantizer import ResidualQuantizer
from .vae.continuous_vae import ContinuousVAE


class CodaTokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to codes (B, T) and back.

    Args:
        vae: Its latents are what the quantizer takes.
        quantizer: Its last side is the latent's grid.
        size: (H, W) in pixels, if it is to be checked; the last side times the VAE's factor in any case.

    Raises:
        CodaError: They do not fit together.
    """

    def __init__(self, vae: ContinuousVAE, quantizer: ResidualQuantizer, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        if vae.latent_channels != quantizer.config.latent_channels:
            raise CodaError(
                f"the VAE has {vae.latent_channels} latent channels, the quantizer {quantizer.config.latent_channels}"
            )
        self.vae, self.quantizer = vae, quantizer
        self._fingerprint: str | None = None
        if size is not None and tuple(size) != self.size:
            raise CodaError(f"images of {_times(size)} do not fit {self.layout}, which are of {_times(self.size)}")

    @property
    def layout(self) -> CodeLayout:
        """Sides, codebook size and order of the codes."""
        return self.quantizer.layout

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images that it was adapted on, in pixels."""
        height, width = self.layout.grid
        return height * self.vae.factor, width * self.vae.factor

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that tell this tokenizer from any other.

        Taken of the weights as they were first asked for, loaded or moved: a copy in half precision still answers for
        the codes of the original. Saving takes it anew, of what is saved.
        """
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.vae, self.quantizer)
        return self._fingerprint

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Codes (B, T) int64, level by level, of images (B, 3, H, W) in [-1, 1]; of the posterior's mode.

        Images of another size than `size` have other sides, and so more or fewer codes: these are `SizedCodes`, which
        know their layout.

        Raises:
            CodaError: The VAE's factor does not divide the size.
        """
        height, width = images.shape[-2:]
        latents = self.vae.encode(images)
        if (height, width) == self.size:
            return self.quantizer.encode(latents)
        layout = self.layout_for(height, width)
        return SizedCodes.of(self.quantizer.encode(latents, layout), layout)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, levels: int | None = None, layout: CodeLayout | None = None) -> torch.Tensor:
        """Images (B, 3, H, W), clamped to [-1, 1], of codes (B, T).

        Args:
            codes: As `encode` gives them.
            levels: Use only that many levels, from the coarsest on; all if None.
            layout: Of the codes, as `layout_for` gives it; that which `SizedCodes` carry, else the own, if None.
        """
        if isinstance(codes, SizedCodes):
            layout, codes = layout or codes.code_layout, codes.as_subclass(torch.Tensor)
        return self.vae.decode(self.quantizer.decode(codes, levels, layout)).clamp(-1, 1)

    def layout_for(self, height: int, width: int) -> CodeLayout:
        """Layout of the codes of images of height × width pixels, which the VAE's factor divides."""
        grid = height // self.vae.factor, width // self.vae.factor
        return self.layout if grid == self.layout.grid else self.layout.scaled(grid)

    def enable_tiling(self, tile: int = 512, overlap: int = 64) -> None:
        """Take large images through the VAE in overlapping tiles, so that memory does not grow with them.

        Args:
            tile: Pixels a side; smaller images go through whole.
            overlap: Pixels over which neighbours are blended.

        Raises:
            CodaError: The VAE's factor does not divide them, or the overlap is no smaller than the tile.
        """
        self.vae.enable_tiling(tile, overlap)

    def disable_tiling(self) -> None:
        """Take images through the VAE whole."""
        self.vae.disable_tiling()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images through codes and back: the reconstruction, (B, 3, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))

    def value_table(self) -> torch.Tensor:
        """What every code stands for among normalised latents, (K, C)."""
        return self.quantizer.value_table()

    def describe(self) -> dict[str, Any]:
        """What a reader of codes needs to know of their tokenizer, as JSON."""
        return {
            "fingerprint": self.fingerprint,
            "autoencoder": self.vae.config.architecture["_class_name"],
            "size": list(self.size),
            "factor": self.vae.factor,
            "latent_channels": self.vae.latent_channels,
            "shift": self.vae.config.shift,
            "scale": self.vae.config.scale,
            "layout": self.layout.to_json(),
        }

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a directory that `from_pretrained` reads."""
        folder = Path(save_directory)
        if folder.is_file():
            raise CodaError(f"{folder} is a file; a tokenizer is saved into a directory")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # until all is written, this is no tokenizer
        self.vae.save_pretrained(folder / "vae")
        self.quantizer.save_pretrained(folder / "quantizer")
        described = self.describe() | {"fingerprint": fingerprint_of(self.vae, self.quantizer)}
        write_bytes(folder / "README.md", _model_card(described, self.layout).encode())
        write_json(folder / MANIFEST, described)

    @classmethod
    def from_pretrained(
        cls, path_or_name: str | Path, torch_dtype: torch.dtype | None = None, **hub: Any
    ) -> CodaTokenizer:
        """Load a tokenizer from a directory or the hub, frozen and in evaluation mode.

        Args:
            path_or_name: What `save_pretrained` wrote, here or in a hub repository.
            torch_dtype: Of the weights; float32 if None.
            **hub: `revision`, `cache_dir`, `token`, `local_files_only`, … for hub ids.

        Raises:
            CodaError: It is not there, damaged, incomplete, or its parts are of different tokenizers.
        """
        folder = local_path(path_or_name)
        if folder is None:
            folder = fetch(str(path_or_name), [MANIFEST, "vae/*", "quantizer/*"], **hub)
        recorded = saved_fingerprint(folder)
        vae = ContinuousVAE.from_pretrained(folder / "vae")
        quantizer = load_strictly(ResidualQuantizer, folder / "quantizer").requires_grad_(False).eval()
        tokenizer = cls(vae, quantizer).eval()
        if tokenizer.fingerprint != recorded:
            raise CodaError(f"{folder}: weights and {MANIFEST} are not of the same tokenizer, or damaged")
        return tokenizer if torch_dtype is None else tokenizer.to(torch_dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> CodaTokenizer:
        """What `.to`, `.half`, `.cuda` … do; the fingerprint is of the weights before."""
        _ = self.fingerprint
        return super()._apply(fn, recurse)


def _times(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)


def _model_card(described: dict[str, Any], layout: CodeLayout) -> str:
    height, width = described["size"]
    bits = layout.num_tokens * (layout.codebook_size - 1).bit_length()
    return f"""---
library_name: coda
pipeline_tag: image-to-image
tags: [image-tokenizer, vector-quantization, coda]
---

# A CODA image tokenizer

Turns RGB images of {height}×{width} pixels into {layout.num_tokens} codes ({bits} bits) and back: a continuous VAE
({described["autoencoder"]}, factor {described["factor"]}, {described["latent_channels"]} latent channels) with residual
quantization over {layout.num_levels} levels and one codebook.

- {layout}
- fingerprint `{described["fingerprint"]}`

```python
from coda.tokenizer import CodaTokenizer

tokenizer = CodaTokenizer.from_pretrained("path/to/this/directory")
codes = tokenizer.encode(images)  # images: (B, 3, {height}, {width}) in [-1, 1]; codes: (B, {layout.num_tokens}) int64
images = tokenizer.decode(codes)  # decode(codes, levels=n) uses the n coarsest levels alone
```

Method: Liu et al., *CODA: Repurposing Continuous VAEs for Discrete Tokenization*, arXiv 2503.17760. Licence and
intended use are those of the VAE it was adapted from.
"""
