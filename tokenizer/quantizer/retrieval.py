"""Retrieval from the codebook by attention, in tiles: never all tokens × all codes at once.

Shapes: N tokens, K codes, d attention width, C latent channels. Queries carry the factor 1/√d already.

With logits s = q·kᵀ, p = softmax(s) and π = softmax(s/τ), retrieval gives, per token,

    code = argmax s,    value = v[code],    gradient of the value: that of (onehot − stopgrad(p) + p) v

and, over the tokens, the two entropies of the paper's loss (Section 3.3),

    sample entropy = mean_t H(π_t),    batch entropy = −Σ_j π̄_j log(π̄_j + ε),    π̄ = mean_t π_t.

**Backward.** Nothing of size N × K is kept: the logits are made again, tile by tile, from the saved maximum and
normalizers. With g = ∂L/∂value, a = v·g and softmax's derivative ∂s = p ⊙ (a − Σ_j p_j a_j), the inner sum is
⟨g, soft⟩ with soft = Σ_j p_j v_j, a C-vector saved by the forward pass. The value is linear in the one-hot, so values
receive g at the code alone. For the entropies, with upstream gradients γ_s and γ_b,

    ∂(s/τ) = (1/N) π ⊙ (c − Σ_j π_j c_j),    c_j = γ_b w_j − γ_s log π_j,    w_j = ∂/∂π̄_j of the batch entropy
    w_j = −log(π̄_j + ε) − π̄_j / (π̄_j + ε),    Σ_j π_j c_j = γ_s H(π) + γ_b Σ_j π_j w_j

of which only Σ_j π_j w_j is new: one more pass over the tiles.

**Processes.** Where several train together, with gradients on, π̄ is the mean over the tokens of all of them; the
backward pass is the same, because their gradients are averaged afterwards.

**Tiles.** One of about 1,024 tokens × 512 codes stays in a core's cache. Two details make them fast on a CPU: `exp` is
ten times slower where it underflows, hence the clamp; `amax` is ten times faster than `argmax`, so the code is searched
in the winning tile alone.

**Near pairs.** At τ = 0.01 all but about one pair of token and code in a thousand has a π that is nothing next to
rounding. Where they are few, those that count are found once, in the tiles whose maximum is near the token's, and kept:
the entropies and their gradients then cost next to nothing. Where they are many (a larger τ, smaller logits), π goes
over all tiles as p does.

**Backends.** These tiles run anywhere; on CUDA, where Triton is, `fused_retrieval` does the same in kernels. The
environment variable CODA_RETRIEVAL names one, or "auto".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F

from ..foundation.distributed import mean_over_processes
from ..foundation.errors import CodaError
from .full_precision import at_least_float32, without_autocast

EPSILON = 1e-5  # inside the logarithm of the batch entropy, as published
_FEW = 128  # near pairs are kept if they are at most one in so many pairs; 20 bytes each, until the backward pass
_PAIRS_AT_ONCE = 8192  # near pairs handled at once in the backward pass
_FUSED_WIDTH = 128  # greatest width that stays in the registers of the fused kernels

Tile = tuple[int, int]
Backend = Literal["tiled", "fused"]


class Retrieved(NamedTuple):
    """Result of a retrieval.

    codes: (N,) int64. values: (N, C), hard in value, soft in gradient. sample_entropy, batch_entropy: scalars.
    """

    codes: torch.Tensor
    values: torch.Tensor
    sample_entropy: torch.Tensor
    batch_entropy: torch.Tensor


@without_autocast
def retrieve(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, temperature: float, tile: Tile | None = None
) -> Retrieved:
    """Retrieve with straight-through gradients and both entropies, in float32 or wider.

    Args:
        queries: (N, d), scaled by 1/√d.
        keys: (K, d).
        values: (K, C).
        temperature: τ of the entropies, > 0.
        tile: (tokens, codes) of one tile; chosen by device if None. Results depend on it by rounding only. If it is
            given, or in float64, the fused kernels are not used.
    """
    widths = keys.shape[1], values.shape[1]
    if tile is None and retrieval_backend(queries.device, queries.dtype, *widths) == "fused":
        from .fused_retrieval import fused_retrieve

        return Retrieved(*fused_retrieve(queries, keys, values, temperature))
    tensors = (at_least_float32(tensor) for tensor in (queries, keys, values))
    found = Retrieved(*_Retrieve.apply(*tensors, temperature, tile or _default_tile(queries), torch.is_grad_enabled()))
    return found._replace(values=found.values.to(values.dtype))


@without_autocast
def argmax_codes(
    queries: torch.Tensor, keys: torch.Tensor, tile: Tile | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index (N,) int64 and value (N,) of each token's largest logit; the first index if several are equal."""
    return _argmax_codes(queries, keys, tile)


def retrieval_backend(device: torch.device, dtype: torch.dtype, d: int = 16, c: int = 16) -> Backend:
    """Name of the implementation that runs: that of CODA_RETRIEVAL; if "auto", the fused kernels where they can run.

    Args:
        device: Device of the tensors.
        dtype: Type of the tensors; the fused kernels take float32, bfloat16 and float16.
        d: Attention width.
        c: Latent channels.

    Raises:
        CodaError: If CODA_RETRIEVAL is not a backend, or is "fused" and the fused kernels cannot run.
    """
    wanted = os.environ.get("CODA_RETRIEVAL", "auto")
    if wanted not in ("auto", "tiled", "fused"):
        raise CodaError(f"CODA_RETRIEVAL is {wanted!r}; it is auto, tiled or fused")
    if wanted == "tiled":
        return "tiled"
    runs = device.type == "cuda" or (wanted == "fused" and os.environ.get("TRITON_INTERPRET") == "1")
    supported = dtype in (torch.float32, torch.bfloat16, torch.float16) and max(d, c) <= _FUSED_WIDTH
    if runs and supported and find_spec("triton"):
        from .fused_retrieval import fits_shared_memory

        if fits_shared_memory(device, d, c):
            return "fused"
    if wanted == "fused":
        raise CodaError(
            "CODA_RETRIEVAL is fused, which needs Triton, a CUDA device with enough shared memory, float32 or half "
            f"precision, and widths up to {_FUSED_WIDTH}; here are {device.type}, "
            f"{str(dtype).removeprefix('torch.')}, {d} and {c}"
        )
    return "tiled"


# A custom operator, because its steps depend on the data: a compiled graph keeps it whole.
@torch.library.custom_op("coda::argmax_codes", mutates_args=())
def _argmax_codes(
    queries: torch.Tensor, keys: torch.Tensor, tile: Sequence[int] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if tile is None and retrieval_backend(queries.device, queries.dtype, queries.shape[1]) == "fused":
        from .fused_retrieval import fused_argmax_codes

        return fused_argmax_codes(queries, keys)
    tokens, width = tile or _default_tile(queries)
    codes, tops = _search(at_least_float32(queries), at_least_float32(keys), (tokens, width))
    return codes, tops.amax(dim=0).to(queries.dtype)


@_argmax_codes.register_fake
def _(queries: torch.Tensor, keys: torch.Tensor, tile: Sequence[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    return queries.new_empty(len(queries), dtype=torch.int64), queries.new_empty(len(queries))


def _search(queries: torch.Tensor, keys: torch.Tensor, tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """Index (N,) of each token's largest logit, and the largest logit in every tile of codes, (tiles, N)."""
    tokens, width = tile
    codes = queries.new_empty(len(queries), dtype=torch.int64)
    tiles = keys.T.split(width, dim=1)  # (d, codes) each
    tops = queries.new_empty(len(tiles), len(queries))
    space = queries.new_empty(min(tokens, len(queries)) * width)  # one tile, allocated once
    for rows in _blocks(len(queries), tokens):
        count = rows.stop - rows.start
        block = queries[rows]
        for part, top in zip(tiles, tops[:, rows].unbind(), strict=True):
            logits = space[: count * part.shape[1]].view(count, -1)
            torch.amax(torch.mm(block, part, out=logits), dim=1, out=top)
        winner = tops[:, rows].argmax(dim=0)
        order = winner.argsort()  # tokens of the same winning tile side by side
        groups = block[order].split(winner.bincount().tolist())
        places = [(group @ part).argmax(dim=1) for group, part in zip(groups, tiles, strict=False) if len(group)]
        codes[rows][order] = winner[order] * width + torch.cat(places)
    return codes, tops


class _Retrieve(torch.autograd.Function):
    """The forward and backward pass derived at the top of this file."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, temperature: float, tile: Tile, together: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        codes, tops = _search(q, k, tile)
        peak = tops.amax(dim=0)[:, None]
        v1 = F.pad(v, (0, 1), value=1.0)  # a column of ones: the sum of the weights comes with the weighted sum
        soft1 = q.new_zeros(len(q), v1.shape[1])  # Σ_j e^s_j (v_j, 1)
        for rows, columns in _tiles(q, k, tile):
            soft1[rows].addmm_(_weights(q[rows], k[columns], peak[rows]), v1[columns])

        norm = q.new_zeros(len(q))  # Σ_j e^x_j with x = s/τ
        moment = q.new_zeros(len(q))  # Σ_j e^x_j x_j
        mean = q.new_zeros(len(k))  # π̄
        near = _near(q, k, peak, tops, temperature, tile)
        if near is not None:
            e = near.x.exp()
            norm.index_add_(0, near.tokens, e)
            moment.index_add_(0, near.tokens, e * near.x)
            mean.index_add_(0, near.codes, e / norm[near.tokens])
        else:
            for rows, columns in _tiles(q, k, tile):
                x = _clamped_scores(q[rows], k[columns], peak[rows], temperature)
                e = x.exp()
                norm[rows] += e.sum(dim=1)
                moment[rows] += e.mul_(x).sum(dim=1)
            for rows, columns in _tiles(q, k, tile):
                e = _clamped_scores(q[rows], k[columns], peak[rows], temperature).exp_()
                mean[columns].addmv_(e.T, 1 / norm[rows])
        norm.masked_fill_(norm == 0, 1)  # if τ is so small that the rounding of the largest logit exceeds the floor
        mean /= len(q)
        if together:
            mean = mean_over_processes(mean)
        entropy = norm.log() - moment / norm  # (N,) H(π_t)
        batch_entropy = -(mean * (mean + EPSILON).log()).sum()

        ctx.save_for_backward(q, k, v1, codes, peak, soft1, norm, entropy, mean, *(near or ()))
        ctx.temperature, ctx.tile = temperature, tile
        ctx.mark_non_differentiable(codes)
        return codes, F.embedding(codes, v), entropy.mean(), batch_entropy

    @staticmethod
    @without_autocast
    def backward(  # type: ignore[override]
        ctx: Any, _: None, g: torch.Tensor, g_sample: torch.Tensor, g_batch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None, None]:
        q, k, v1, codes, peak, soft1, norm, entropy, mean, *near = ctx.saved_tensors
        tile, tau = ctx.tile, ctx.temperature
        gq, gk = torch.zeros_like(q), torch.zeros_like(k)
        gv = torch.zeros_like(v1[:, :-1]).index_add_(0, codes, g)

        total = soft1[:, -1:]
        inner = (g * soft1[:, :-1]).sum(dim=1, keepdim=True) / total  # ⟨g, soft⟩
        g1 = torch.cat([g, -inner], dim=1) / total  # (N, C+1), so that p ⊙ (a − ⟨g, soft⟩) = e^s ⊙ (g1 · v1)
        for rows, columns in _tiles(q, k, tile):
            ds = _weights(q[rows], k[columns], peak[rows]).mul_(g1[rows] @ v1[columns].T)
            gq[rows].addmm_(ds, k[columns])
            gk[columns].addmm_(ds.T, q[rows])

        w = -(mean + EPSILON).log() - mean / (mean + EPSILON)
        expected = torch.zeros_like(norm)  # Σ_j π_j w_j
        scale = 1 / (len(q) * tau * norm)
        own = g_sample * (norm.log() - entropy)  # log π = x − log norm: the part of c − Σ_j π_j c_j that is the token's
        if near:
            tokens, columns, x = near
            e = x.exp()
            expected.index_add_(0, tokens, e * w[columns]).div_(norm)
            own -= g_batch * expected
            ds = e * scale[tokens] * (own[tokens] + g_batch * w[columns] - g_sample * x)
            for part in _blocks(len(ds), _PAIRS_AT_ONCE):
                gq.index_add_(0, tokens[part], ds[part, None] * k[columns[part]])
                gk.index_add_(0, columns[part], ds[part, None] * q[tokens[part]])
            return gq, gk, gv, None, None, None
        for rows, columns in _tiles(q, k, tile):
            e = _clamped_scores(q[rows], k[columns], peak[rows], tau).exp_()
            expected[rows].addmv_(e, w[columns])
        own -= g_batch * expected.div_(norm)
        own1 = torch.stack([torch.ones_like(own), own], dim=1)  # (N, 2)
        w1 = torch.stack([g_batch * w, torch.ones_like(w)])  # (2, K)
        for rows, columns in _tiles(q, k, tile):
            x = _clamped_scores(q[rows], k[columns], peak[rows], tau)
            ds = x.exp().mul_(scale[rows, None]).mul_((own1[rows] @ w1[:, columns]).sub_(x.mul_(g_sample)))
            gq[rows].addmm_(ds, k[columns])
            gk[columns].addmm_(ds.T, q[rows])
        return gq, gk, gv, None, None, None


def _weights(q: torch.Tensor, k: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
    """One tile of e^(s − max s)."""
    return (q @ k.T).sub_(peak).clamp_(min=_floor(k)).exp_()


def _scores(q: torch.Tensor, k: torch.Tensor, peak: torch.Tensor, temperature: float) -> torch.Tensor:
    """One tile of x = (s − max s) / τ.

    The product starts from −max s, so that its rounding error is as small as the difference, which 1/τ then enlarges.
    """
    return torch.addmm(peak, q, k.T, beta=-1).div_(temperature)


def _clamped_scores(q: torch.Tensor, k: torch.Tensor, peak: torch.Tensor, temperature: float) -> torch.Tensor:
    """`_scores` clamped from below to the floor, where `exp` is fast."""
    return _scores(q, k, peak, temperature).clamp_(min=_floor(k))


def _floor(k: torch.Tensor) -> float:
    """The lowest logit, relative to the largest, that still counts.

    All codes below it together would add less to a sum than rounding does, even when multiplied by 1/τ and the logit:
    hence e^-10.
    """
    return math.log(torch.finfo(k.dtype).eps / len(k)) - 10


class _Near(NamedTuple):
    """Pairs of tokens and codes that count at a low temperature: those with x above the floor."""

    tokens: torch.Tensor
    codes: torch.Tensor
    x: torch.Tensor


def _near(
    q: torch.Tensor, k: torch.Tensor, peak: torch.Tensor, tops: torch.Tensor, temperature: float, tile: Tile
) -> _Near | None:
    """All near pairs; None if they are more than one in `_FEW` pairs."""
    floor = _floor(k)
    close = tops > peak.T + floor * temperature  # (tiles, N): tiles in which a token can have near codes
    found, left = [], len(q) * len(k) // _FEW
    for columns, rows in zip(_blocks(len(k), tile[1]), close, strict=True):
        for tokens in rows.nonzero()[:, 0].split(tile[0]):
            x = _scores(q[tokens], k[columns], peak[tokens], temperature)
            token, code = (x > floor).nonzero().T
            found.append(_Near(tokens[token], code + columns.start, x[token, code]))
            left -= len(token)
            if left < 0:
                return None
    return _Near(*map(torch.cat, zip(*found, strict=True)))


def _tiles(q: torch.Tensor, k: torch.Tensor, tile: Tile) -> Iterator[tuple[slice, slice]]:
    """Slices of tokens and codes of all tiles."""
    for rows in _blocks(len(q), tile[0]):
        for columns in _blocks(len(k), tile[1]):
            yield rows, columns


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _default_tile(queries: torch.Tensor) -> Tile:
    if queries.device.type != "cpu":
        return 4096, 8192
    # Few tokens take more codes at a time: speed depends on the size of a tile and on their number.
    return 1024, 512 if len(queries) >= 256 else 8192
