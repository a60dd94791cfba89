"""Retrieval from the codebook in fused kernels: straight-through codes, soft gradient and both entropies on a GPU.

The mathematics and the names are those of `retrieval`, which derives the backward pass. Each kernel computes the logits
of a block of tokens and a block of codes in registers and never writes them:

    search       tokens × codes, once: maximum, first code that reaches it, Σ e^s v, Σ e^s, Σ e^x, Σ e^x x, all of
                 them relative to the largest logit so far (as in FlashAttention, Dao et al. 2022), with x = s/τ
    mean_weights codes × tokens, once: π̄
    expected     tokens × codes, once: Σ_j π_j w_j
    grad_queries tokens × codes, once;  grad_keys  codes × tokens, once

If there are few tokens (coarse levels), the codes are split among programs, and the results of the splits are joined
in a fixed order. There are no atomics: the same inputs give the same bits. Inputs are float32, bfloat16 or
float16; everything is accumulated in float32, and Σ e^s v and the gradients of half-precision inputs go through TF32.

With TRITON_INTERPRET=1 in the environment before Triton is first imported, the kernels run on a CPU, for tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ..foundation.distributed import mean_over_processes
from .full_precision import without_autocast
from .retrieval import EPSILON

_PROGRAMS = 264  # programs to start if there are enough codes: two for each multiprocessor of an H100
_FEWEST_CODES = 1024  # codes of a split; with fewer, joining costs more than it saves


class Blocks(NamedTuple):
    """Tokens and codes that a program holds in registers at a time: powers of two, at least 16."""

    tokens: int = 64
    codes: int = 64


@triton.jit
def _load(matrix, lines, length, width: tl.constexpr, padded: tl.constexpr):
    """Lines of a contiguous (length, width) matrix in float32, with zeros beyond either."""
    dims = tl.arange(0, padded)
    inside = (lines < length)[:, None] & (dims < width)[None, :]
    places = matrix + lines.to(tl.int64)[:, None] * width + dims[None, :]
    return tl.load(places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(matrix, lines, length, width: tl.constexpr, padded: tl.constexpr, block):
    dims = tl.arange(0, padded)
    inside = (lines < length)[:, None] & (dims < width)[None, :]
    tl.store(matrix + lines.to(tl.int64)[:, None] * width + dims[None, :], block, mask=inside)


@triton.jit
def _cold(logits, peak, inverse_tau):
    """The exponent x = (s − max s) / τ, clamped from below so that e^x · x is not NaN if s is −∞, and to at most 0."""
    return tl.minimum(tl.maximum((logits - peak) * inverse_tau, -1e4), 0.0)


@triton.jit
def _search(
    queries, keys, values, peaks, codes, softs, totals, norms, moments, n, k, inverse_tau, split_codes,
    d: tl.constexpr, d_pad: tl.constexpr, c: tl.constexpr, c_pad: tl.constexpr,
    tokens: tl.constexpr, width: tl.constexpr, precision: tl.constexpr, weigh: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first = tl.program_id(1) * split_codes
    q = _load(queries, rows, n, d, d_pad)
    peak = tl.full((tokens,), float("-inf"), tl.float32)
    code = tl.zeros((tokens,), tl.int32)
    soft = tl.zeros((tokens, c_pad), tl.float32)
    total = tl.zeros((tokens,), tl.float32)
    norm = tl.zeros((tokens,), tl.float32)
    moment = tl.zeros((tokens,), tl.float32)
    for start in range(first, tl.minimum(first + split_codes, k), width):
        columns = start + tl.arange(0, width)
        s = tl.dot(q, tl.trans(_load(keys, columns, k, d, d_pad)), input_precision=precision)
        s = tl.where((columns < k)[None, :], s, float("-inf"))
        largest, place = tl.max(s, axis=1, return_indices=True, return_indices_tie_break_left=True)
        code = tl.where(largest > peak, start + place, code)  # the first of equal logits
        higher = tl.maximum(peak, largest)
        if weigh:
            p = tl.exp(s - higher[:, None])
            v = _load(values, columns, k, c, c_pad)
            shrink = tl.exp(peak - higher)
            soft = soft * shrink[:, None] + tl.dot(p, v, input_precision=precision)
            total = total * shrink + tl.sum(p, axis=1)
            x = _cold(s, higher[:, None], inverse_tau)
            e = tl.exp(x)
            sunk = _cold(peak, higher, inverse_tau)  # change of every x so far
            shrink = tl.exp(sunk)
            moment = (moment + sunk * norm) * shrink + tl.sum(e * x, axis=1)
            norm = norm * shrink + tl.sum(e, axis=1)
        peak = higher
    inside = rows < n
    here = tl.program_id(1).to(tl.int64) * n + rows
    tl.store(peaks + here, peak, mask=inside)
    tl.store(codes + here, code.to(tl.int64), mask=inside)
    if weigh:
        tl.store(totals + here, total, mask=inside)
        tl.store(norms + here, norm, mask=inside)
        tl.store(moments + here, moment, mask=inside)
        _store(softs + tl.program_id(1).to(tl.int64) * n * c, rows, n, c, c_pad, soft)


@triton.jit
def _mean_weights(
    queries, keys, peaks, norms, means, n, k, inverse_tau,
    d: tl.constexpr, d_pad: tl.constexpr, tokens: tl.constexpr, width: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * width + tl.arange(0, width)
    keys_here = tl.trans(_load(keys, columns, k, d, d_pad))
    mean = tl.zeros((width,), tl.float32)
    for start in range(0, n, tokens):
        rows = start + tl.arange(0, tokens)
        s = tl.dot(_load(queries, rows, n, d, d_pad), keys_here, input_precision=precision)
        # Beyond the last token the maximum is ∞, so the weight is 0.
        peak = tl.load(peaks + rows, mask=rows < n, other=float("inf"))
        norm = tl.load(norms + rows, mask=rows < n, other=1.0)
        mean += tl.sum(tl.exp(_cold(s, peak[:, None], inverse_tau)) / norm[:, None], axis=0)
    tl.store(means + columns, mean / n, mask=columns < k)


@triton.jit
def _expected(
    queries, keys, peaks, weights, sums, n, k, inverse_tau, split_codes,
    d: tl.constexpr, d_pad: tl.constexpr, tokens: tl.constexpr, width: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first = tl.program_id(1) * split_codes
    q = _load(queries, rows, n, d, d_pad)
    peak = tl.load(peaks + rows, mask=rows < n, other=float("inf"))
    total = tl.zeros((tokens,), tl.float32)
    for start in range(first, tl.minimum(first + split_codes, k), width):
        columns = start + tl.arange(0, width)
        s = tl.dot(q, tl.trans(_load(keys, columns, k, d, d_pad)), input_precision=precision)
        w = tl.load(weights + columns, mask=columns < k, other=0.0)
        total += tl.sum(tl.exp(_cold(s, peak[:, None], inverse_tau)) * w[None, :], axis=1)
    tl.store(sums + tl.program_id(1).to(tl.int64) * n + rows, total, mask=rows < n)


@triton.jit
def _grad_logits(q, k, g, v, peak, inner, scale, own, w, g_sample, inverse_tau, precision: tl.constexpr):
    """∂L/∂s of a block: e^s ⊙ (g·v − inner) + scale · e^x ⊙ (own + w − γ_s x)."""
    s = tl.dot(q, tl.trans(k), input_precision=precision)
    p = tl.exp(tl.minimum(s - peak[:, None], 0.0))
    x = _cold(s, peak[:, None], inverse_tau)
    values = tl.dot(g, tl.trans(v), input_precision=precision) - inner[:, None]
    entropies = own[:, None] + w[None, :] - g_sample * x
    return p * values + scale[:, None] * tl.exp(x) * entropies


@triton.jit
def _grad_queries(
    queries, keys, values, grads, peaks, inners, scales, owns, weights, out, n, k, sample, inverse_tau, split_codes,
    d: tl.constexpr, d_pad: tl.constexpr, c: tl.constexpr, c_pad: tl.constexpr,
    tokens: tl.constexpr, width: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first = tl.program_id(1) * split_codes
    q = _load(queries, rows, n, d, d_pad)
    g = _load(grads, rows, n, c, c_pad)
    peak = tl.load(peaks + rows, mask=rows < n, other=float("inf"))
    inner = tl.load(inners + rows, mask=rows < n, other=0.0)
    scale = tl.load(scales + rows, mask=rows < n, other=0.0)
    own = tl.load(owns + rows, mask=rows < n, other=0.0)
    g_sample = tl.load(sample)
    total = tl.zeros((tokens, d_pad), tl.float32)
    for start in range(first, tl.minimum(first + split_codes, k), width):
        columns = start + tl.arange(0, width)
        keys_here = _load(keys, columns, k, d, d_pad)  # zeros beyond the last code, which add nothing
        v = _load(values, columns, k, c, c_pad)
        w = tl.load(weights + columns, mask=columns < k, other=0.0)
        ds = _grad_logits(q, keys_here, g, v, peak, inner, scale, own, w, g_sample, inverse_tau, precision)
        total += tl.dot(ds, keys_here, input_precision=precision)
    _store(out + tl.program_id(1).to(tl.int64) * n * d, rows, n, d, d_pad, total)


@triton.jit
def _grad_keys(
    queries, keys, values, grads, peaks, inners, scales, owns, weights, out, n, k, sample, inverse_tau,
    d: tl.constexpr, d_pad: tl.constexpr, c: tl.constexpr, c_pad: tl.constexpr,
    tokens: tl.constexpr, width: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * width + tl.arange(0, width)
    keys_here = _load(keys, columns, k, d, d_pad)
    v = _load(values, columns, k, c, c_pad)
    w = tl.load(weights + columns, mask=columns < k, other=0.0)
    g_sample = tl.load(sample)
    total = tl.zeros((width, d_pad), tl.float32)
    for start in range(0, n, tokens):
        rows = start + tl.arange(0, tokens)
        q = _load(queries, rows, n, d, d_pad)
        g = _load(grads, rows, n, c, c_pad)
        peak = tl.load(peaks + rows, mask=rows < n, other=float("inf"))
        inner = tl.load(inners + rows, mask=rows < n, other=0.0)
        scale = tl.load(scales + rows, mask=rows < n, other=0.0)
        own = tl.load(owns + rows, mask=rows < n, other=0.0)
        ds = _grad_logits(q, keys_here, g, v, peak, inner, scale, own, w, g_sample, inverse_tau, precision)
        total += tl.dot(tl.trans(ds), q, input_precision=precision)
    _store(out, columns, k, d, d_pad, total)


DEFAULT_BLOCKS = Blocks()


def shared_memory(d: int, c: int) -> int:
    """Bytes of shared memory that a program needs at most, as compiled with the default blocks in float32."""
    return 16_896 + 768 * (_padded(d) + _padded(c))


def fits_shared_memory(device: torch.device, d: int, c: int) -> bool:
    """Whether a program on this device may have the shared memory that widths d and c need."""
    if not torch.cuda.is_available():
        return True  # Triton's interpreter
    properties = torch.cuda.get_device_properties(device)
    # ROCm has only the first of the two; on CUDA it is less than a program may have.
    most = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return shared_memory(d, c) <= int(most)


def fused_retrieve(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    temperature: float,
    blocks: Blocks = DEFAULT_BLOCKS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`retrieval.retrieve` in kernels: codes, values and both entropies, the latter in float32."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] = _FusedRetrieve.apply(
        queries, keys, values, temperature, blocks, torch.is_grad_enabled()
    )
    return found


@torch.no_grad()
def fused_argmax_codes(
    queries: torch.Tensor, keys: torch.Tensor, blocks: Blocks = DEFAULT_BLOCKS
) -> tuple[torch.Tensor, torch.Tensor]:
    """`retrieval.argmax_codes` in kernels."""
    codes, peak = _Launch(queries, keys, keys, 1.0, blocks).search(weigh=False)
    return codes, peak.to(queries.dtype)


class _FusedRetrieve(torch.autograd.Function):
    """Forward and backward as in `retrieval`, in kernels."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, temperature: float, blocks: Blocks, together: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        launch = _Launch(q, k, v, temperature, blocks)
        codes, peak, soft, total, norm, moment = launch.search(weigh=True)
        mean = launch.mean_weights(peak, norm)
        if together:
            mean = mean_over_processes(mean)
        entropy = norm.log() - moment / norm
        batch_entropy = -(mean * (mean + EPSILON).log()).sum()
        ctx.save_for_backward(q, k, v, codes, peak, soft, total, norm, entropy, mean)
        ctx.temperature, ctx.blocks = temperature, blocks
        ctx.mark_non_differentiable(codes)
        return codes, F.embedding(codes, v), entropy.mean(), batch_entropy

    @staticmethod
    @without_autocast
    def backward(  # type: ignore[override]
        ctx: Any, _: None, g: torch.Tensor, g_sample: torch.Tensor, g_batch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None, None]:
        q, k, v, codes, peak, soft, total, norm, entropy, mean = ctx.saved_tensors
        launch = _Launch(q, k, v, ctx.temperature, ctx.blocks)
        g = g.float()
        gv = torch.zeros_like(v, dtype=torch.float32).index_put_((codes,), g, accumulate=True)  # sorted: no atomics
        inner = (g * soft).sum(dim=1) / total**2  # ⟨g, soft⟩ / Σ e^s: p is e^s / Σ e^s
        w = -(mean + EPSILON).log() - mean / (mean + EPSILON)
        expected = launch.expected(peak, w) / norm
        own = g_sample * (norm.log() - entropy) - g_batch * expected
        scale = 1 / (len(q) * ctx.temperature * norm)
        gq, gk = launch.gradients(
            (g / total[:, None]).contiguous(), peak, inner, scale, own, g_batch * w, g_sample.float()
        )
        return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), None, None, None


class _Launch:
    """The kernels on one set of queries, keys and values."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, temperature: float, blocks: Blocks) -> None:
        self.q, self.k, self.v = q.contiguous(), k.contiguous(), v.contiguous()
        self.n, self.codes, self.blocks = len(q), len(k), blocks
        self.inverse_tau = 1 / temperature
        self.d = {"d": q.shape[1], "d_pad": _padded(q.shape[1])}
        self.c = {"c": v.shape[1], "c_pad": _padded(v.shape[1])}
        # TF32 holds half-precision numbers exactly, and runs on tensor cores. Three products of TF32 would be faster
        # than one of float32, but keys set by k-means differ by less than they round (docs/LOG.md).
        precision = "ieee" if q.dtype == torch.float32 else "tf32"
        self.size = {"tokens": blocks.tokens, "width": blocks.codes, "precision": precision}
        self.token_blocks = triton.cdiv(self.n, blocks.tokens)
        self.code_blocks = triton.cdiv(self.codes, blocks.codes)
        # Enough splits to fill the GPU, each a whole number of blocks and none empty.
        most = max(1, min(triton.cdiv(_PROGRAMS, self.token_blocks), self.codes // _FEWEST_CODES))
        self.split_codes = triton.cdiv(self.code_blocks, most) * blocks.codes
        self.splits = triton.cdiv(self.codes, self.split_codes)

    def search(self, weigh: bool) -> tuple[torch.Tensor, ...]:
        """Codes (N,), the largest logit (N,); and with `weigh` Σ e^s v (N, C), Σ e^s, Σ e^x, Σ e^x x (N,)."""
        peaks, codes = self._empty(), self._empty(dtype=torch.int64)
        softs = self._empty(self.c["c"]) if weigh else peaks
        totals, norms, moments = (self._empty() if weigh else peaks for _ in range(3))
        _search[(self.token_blocks, self.splits)](
            self.q, self.k, self.v, peaks, codes, softs, totals, norms, moments, self.n, self.codes,
            self.inverse_tau, self.split_codes, **self.d, **self.c, **self.size, weigh=weigh,
        )  # fmt: skip
        peak = peaks.amax(dim=0)
        codes = codes.gather(0, peaks.argmax(dim=0)[None])[0]  # the first of equal logits; `max` may give another
        if not weigh:
            return codes, peak
        shrink = (peaks - peak).exp()
        sunk = ((peaks - peak) * self.inverse_tau).clamp(min=-1e4)
        shrink_cold = sunk.exp()
        return (
            codes,
            peak,
            (softs * shrink[..., None]).sum(dim=0),
            (totals * shrink).sum(dim=0),
            (norms * shrink_cold).sum(dim=0),
            ((moments + sunk * norms) * shrink_cold).sum(dim=0),
        )

    def mean_weights(self, peak: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """π̄ (K,)."""
        mean = torch.empty(self.codes, device=self.q.device)
        _mean_weights[(self.code_blocks,)](
            self.q, self.k, peak, norm, mean, self.n, self.codes, self.inverse_tau, **self.d, **self.size
        )
        return mean

    def expected(self, peak: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Σ_j e^x_j w_j (N,)."""
        sums = self._empty()
        _expected[(self.token_blocks, self.splits)](
            self.q, self.k, peak, w, sums, self.n, self.codes, self.inverse_tau, self.split_codes,
            **self.d, **self.size,
        )  # fmt: skip
        return sums.sum(dim=0)

    def gradients(self, *per_token_and_code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of queries (N, d) and keys (K, d)."""
        *operands, g_sample = per_token_and_code
        common = (self.q, self.k, self.v, *operands)
        shapes = {**self.d, **self.c, **self.size}
        gq, gk = self._empty(self.d["d"]), torch.empty(self.k.shape, device=self.q.device)
        _grad_queries[(self.token_blocks, self.splits)](
            *common, gq, self.n, self.codes, g_sample, self.inverse_tau, self.split_codes, **shapes
        )
        _grad_keys[(self.code_blocks,)](*common, gk, self.n, self.codes, g_sample, self.inverse_tau, **shapes)
        return gq.sum(dim=0), gk

    def _empty(self, *width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(self.splits, self.n, *width, device=self.q.device, dtype=dtype)


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))
