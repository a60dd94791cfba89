"""Images decoded from the codes of a cache: what a tokenizer's generator can reach at best."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.images import to_uint8

from .image_set import ImageSet, drawn_indices


class DecodedCodes(ImageSet):
    """The samples of a code cache, or some of them drawn at random, decoded.

    Args:
        cache: The cache.
        decode: From codes (B, T) to images (B, 3, H, W) in [-1, 1].
        limit: Use at most this many samples, drawn evenly by `seed`.
        seed: Seed of that draw.
    """

    def __init__(
        self, cache: CodeCache, decode: Callable[[torch.Tensor], torch.Tensor], limit: int | None = None, seed: int = 0
    ) -> None:
        self._cache, self._decode = cache, decode
        self.indices = drawn_indices(len(cache), limit, seed)
        self.description = {
            "set": "decoded codes of a cache",
            "tokenizer": cache.tokenizer_fingerprint,
            "drawn": f"{len(self.indices)} of {len(cache)}, seed {seed}",
        }

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> list[int]:
        """The label of every sample, without decoding any."""
        return self._cache.labels[self.indices].tolist()

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pixels (B, 3, H, W) uint8 and labels (B,), in the order of the cache."""
        for i in range(0, len(self), batch_size):
            codes, labels = self._cache.batch(self.indices[i : i + batch_size])
            yield to_uint8(self._decode(codes)).cpu(), labels
