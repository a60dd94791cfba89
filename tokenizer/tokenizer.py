"""Images ⇄ codes: a VAE and a residual quantizer, saved and loaded as one.

    directory/
      vae/                 a ContinuousVAE, its LoRA merged
      quantizer/           a ResidualQuantizer
      README.md            model card
      coda_tokenizer.json  description and fingerprint; written last

Shapes: B images of H × W pixels, T codes each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import EvalResult
from torch import nn

from .fingerprint import MANIFEST, fingerprint_of, saved_fingerprint
from .foundation.atomic_io import write_bytes, write_json
from .foundation.errors import CodaError
from .foundation.hub import card_metadata, fetch, local_path, upload
from .layout import CodeLayout
from .quantizer.residual_quantizer import ResidualQuantizer
from .vae.continuous_vae import ContinuousVAE


class CodaTokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to codes (B, T) and back.

    Args:
        vae: Makes latents of images and images of latents.
        quantizer: Makes codes of the VAE's latents.
        size: Expected image size (H, W) in pixels; must equal the last side times the VAE's factor.
        fingerprint: Fingerprint, if it is known; computed from the weights when it is first needed if None.

    Raises:
        CodaError: If they do not fit together.
    """

    def __init__(
        self,
        vae: ContinuousVAE,
        quantizer: ResidualQuantizer,
        size: tuple[int, int] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if vae.latent_channels != quantizer.config.latent_channels:
            raise CodaError(
                f"the VAE has {vae.latent_channels} latent channels, the quantizer {quantizer.config.latent_channels}"
            )
        self.vae, self.quantizer = vae, quantizer
        self._fingerprint = fingerprint
        if size is not None and tuple(size) != self.size:
            height, width = self.size
            raise CodaError(f"the tokenizer takes images of {height}x{width}, not {size[0]}x{size[1]}")

    @property
    def layout(self) -> CodeLayout:
        """Sides, codebook size and order of the codes."""
        return self.quantizer.layout

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels of the images that the tokenizer was adapted on."""
        height, width = self.layout.grid
        return height * self.vae.factor, width * self.vae.factor

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that identify the tokenizer.

        Computed when it is first needed, or just before the weights are converted to another type: a copy in half
        precision keeps the fingerprint of the original. `save_pretrained` computes it from the weights that it saves.
        """
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.vae, self.quantizer)
        return self._fingerprint

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images to codes (B, T) int64, level by level, using the mode of the VAE's posterior.

        Args:
            images: (B, 3, H, W) in [-1, 1]. Images of another size than `size` have the layout `layout_for(H, W)`.

        Raises:
            CodaError: If the images are not in [-1, 1], or the VAE's factor does not divide their size.
        """
        latents = self.vae.encode(images)
        return self.quantizer.encode(latents, self.layout_for(*images.shape[-2:]))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, levels: int | None = None, layout: CodeLayout | None = None) -> torch.Tensor:
        """Decode codes (B, T) to images (B, 3, H, W), clamped to [-1, 1].

        Args:
            codes: Codes from `encode`.
            levels: Number of levels to use, starting with the coarsest; all if None.
            layout: Layout of the codes, `layout_for(H, W)` for images of another size; the tokenizer's own if None.
        """
        return self.vae.decode(self.quantizer.decode(codes, levels, layout)).clamp(-1, 1)

    def layout_for(self, height: int, width: int) -> CodeLayout:
        """Layout of the codes of images of height × width pixels, multiples of the VAE's factor."""
        grid = height // self.vae.factor, width // self.vae.factor
        return self.layout if grid == self.layout.grid else self.layout.scaled(grid)

    def enable_tiling(self, tile: int = 512, overlap: int = 64) -> None:
        """Run the VAE on large images in overlapping tiles, so that memory does not grow with them.

        Args:
            tile: Side of a tile in pixels; smaller images are not tiled.
            overlap: Pixels over which neighboring tiles are blended.

        Raises:
            CodaError: If the VAE's factor does not divide them, or the overlap is not smaller than the tile.
        """
        self.vae.enable_tiling(tile, overlap)

    def disable_tiling(self) -> None:
        """Run the VAE on whole images."""
        self.vae.disable_tiling()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruct images (B, 3, H, W) in [-1, 1] from their codes."""
        return self.decode(self.encode(images), layout=self.layout_for(*images.shape[-2:]))

    def value_table(self) -> torch.Tensor:
        """The normalized latent that each code stands for, (K, C)."""
        return self.quantizer.value_table()

    def describe(self) -> dict[str, Any]:
        """JSON description of the tokenizer for readers of its codes."""
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

    def save_pretrained(self, save_directory: str | Path, results: Sequence[EvalResult] = ()) -> None:
        """Save to a directory, for `from_pretrained`; `results` are figures for the model card."""
        folder = Path(save_directory)
        if folder.is_file():
            raise CodaError(f"{folder} is a file; a tokenizer is saved into a directory")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # until all is written, this is not a tokenizer
        self.vae.save_pretrained(folder / "vae")
        self.quantizer.save_pretrained(folder / "quantizer")
        described = self.describe() | {"fingerprint": fingerprint_of(self.vae, self.quantizer)}
        write_bytes(folder / "README.md", _model_card(described, self.layout, results).encode())
        write_json(folder / MANIFEST, described)

    def push_to_hub(self, repo_id: str, results: Sequence[EvalResult] = (), **hub: Any) -> str:
        """Upload to the hub; returns the address of the commit.

        Args:
            repo_id: Repository, such as `user/name`; made if there is none.
            results: Figures for the model card, such as `Report.to_eval_results` gives.
            **hub: `private`, `token`, `commit_message`, `create_pr`.

        Raises:
            CodaError: If the hub cannot be reached or refuses.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, results)
            return upload(folder, repo_id, **hub)

    @classmethod
    def from_pretrained(
        cls, path_or_name: str | Path, torch_dtype: torch.dtype | None = None, **hub: Any
    ) -> CodaTokenizer:
        """Load a tokenizer from a directory or the hub, frozen and in evaluation mode.

        Args:
            path_or_name: Directory that `save_pretrained` wrote, or hub id of one.
            torch_dtype: Type of the weights; float32 if None.
            **hub: `revision`, `cache_dir`, `token`, `local_files_only`, … for hub ids.

        Raises:
            CodaError: If it is missing, damaged or incomplete, or its parts belong to different tokenizers.
        """
        folder = local_path(path_or_name)
        if folder is None:
            folder = fetch(str(path_or_name), [MANIFEST, "vae/*", "quantizer/*"], **hub)
        recorded = saved_fingerprint(folder)
        vae = ContinuousVAE.from_pretrained(folder / "vae")
        quantizer = ResidualQuantizer.from_pretrained(folder / "quantizer").requires_grad_(False)
        tokenizer = cls(vae, quantizer).eval()
        if tokenizer.fingerprint != recorded:
            raise CodaError(f"{folder} is damaged: weights and {MANIFEST} are not of the same tokenizer")
        return tokenizer if torch_dtype is None else tokenizer.to(torch_dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> CodaTokenizer:
        """Called by `.to`, `.half`, …: before weights are converted, their fingerprint is taken."""
        one_per_type = {weight.dtype: weight.new_empty(0) for weight in self.parameters()}
        if self._fingerprint is None and any(fn(weight).dtype != dtype for dtype, weight in one_per_type.items()):
            self._fingerprint = fingerprint_of(self.vae, self.quantizer)
        return super()._apply(fn, recurse)


def _model_card(described: dict[str, Any], layout: CodeLayout, results: Sequence[EvalResult]) -> str:
    height, width = described["size"]
    bits = layout.num_tokens * (layout.codebook_size - 1).bit_length()
    tags = ["image-tokenizer", "vector-quantization", "coda"]
    head = card_metadata("CODA image tokenizer", results, library_name="coda", pipeline_tag="image-to-image", tags=tags)
    return f"""{head}
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

Method: Liu et al., *CODA: Repurposing Continuous VAEs for Discrete Tokenization*, arXiv 2503.17760. License and
intended use are those of the VAE it was adapted from.
"""
