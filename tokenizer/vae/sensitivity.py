"""How strongly the decoder's images depend on each direction of a latent.

A quantizer that measures distances between latents alike in all channels spends codes on directions that the decoder
hardly shows. Weighed by the decoder's sensitivity, the same codes give a better image.
"""

from __future__ import annotations

import torch

from ..foundation.errors import CodaError
from ..foundation.seeding import step_generator
from .continuous_vae import ContinuousVAE

_FLOOR = 1e-3  # of the largest eigenvalue: directions that the decoder ignores still count a little
_AT_ONCE = 8  # latents
METRIC_IMAGES = 64  # enough: each gives as many samples of g as its latent has cells


def decoder_metric(vae: ContinuousVAE, latents: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A matrix A such that |A (a - b)|² is about proportional to the change in the image when a cell goes from a to b.

    A = E[JᵀJ]^½ with J the Jacobian of the decoder. E[JᵀJ] is the mean of g gᵀ over latents and their cells, where
    g = Jᵀv and v ~ N(0, I) has the shape of an image, since E[v vᵀ] = I. One backward pass per batch of latents.

    Args:
        vae: With the weights to be measured; not changed.
        latents: (N, C, h, w), normalized, on the VAE's device; `METRIC_IMAGES` are enough.
        seed: Seed of v.

    Returns:
        (C, C) float32, symmetric and positive definite, on the latents' device. The mean of its squared eigenvalues
        is 1.

    Raises:
        CodaError: If the decoder gives a gradient that is zero, NaN or infinite.
    """
    channels = latents.shape[1]
    total = torch.zeros(channels, channels, dtype=torch.float64)
    generator = step_generator(seed, 0, "decoder metric")
    for batch in latents.split(_AT_ONCE):
        with torch.enable_grad():
            given = batch.detach().requires_grad_()
            images = vae.decode(given)
            v = torch.randn(images.shape, generator=generator).to(images)  # on the CPU: the same on every device
            (gradient,) = torch.autograd.grad(images, given, v)
        g = gradient.double().cpu().movedim(1, 0).flatten(1)  # (C, cells)
        total += g @ g.T
    if not bool(total.isfinite().all()) or not bool(total.trace() > 0):
        raise CodaError("the decoder's gradient is zero, NaN or infinite: the VAE's weights are damaged")
    values, vectors = torch.linalg.eigh(total)
    values = values.clamp(min=_FLOOR * float(values[-1]))
    root = vectors @ torch.diag((values / values.mean()).sqrt()) @ vectors.T
    return root.float().to(latents.device)
