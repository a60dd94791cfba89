"""How a VAE computes while it is trained: compiled, or with fewer activations kept. The results stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .continuous_vae import ContinuousVAE


def compile_autoencoder(vae: ContinuousVAE, backend: str = "inductor") -> None:
    """Compile the encoder and the decoder with `torch.compile`, at their first call; weights keep their names."""
    for half in (vae.autoencoder.encoder, vae.autoencoder.decoder):
        half.compile(backend=backend)


def checkpoint_decoder(vae: ContinuousVAE) -> None:
    """Let the decoder's blocks compute their activations again in the backward pass instead of keeping them.

    Memory then holds the activations of one block at a time, for about a third more arithmetic in the decoder.
    """
    for block in _blocks(vae.autoencoder.decoder):
        block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks: what lists hold, and what else consists of several layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(child)
        elif any(True for _ in child.children()):
            yield child


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed
