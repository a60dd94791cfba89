"""Statistics of a code cache: codebook usage, class balance, repeated images.

Shapes: N images in V variants, so N·V samples, of T codes each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.usage import CodeUsage, LevelUsage

_BLOCK = 4096  # samples whose codes are in memory at the same time
_NAMED = 3  # pairs of duplicates that are named


@dataclass(frozen=True)
class LabelBalance:
    """Distribution of the labeled images over the classes that occur.

    Attributes:
        images: Number of images with a label.
        classes: Number of classes with an image.
        fewest: Images of the rarest of these classes.
        median: Median number of images per class.
        most: Images of the most frequent class.
        evenness: Entropy of the labels divided by its maximum, log(`classes`): 1 if all classes are equally frequent
            (also for a single class), near 0 if nearly all images are of one class.
    """

    images: int
    classes: int
    fewest: int
    median: float
    most: int
    evenness: float


@dataclass(frozen=True)
class CacheStatistics:
    """Statistics of a code cache.

    Attributes:
        levels: Codebook usage per level, over all variants.
        overall: All levels together.
        labels: Class balance; None if no image has a label.
        duplicates: Images with the codes (of the first variant) of an earlier image.
        duplicate_keys: For the first few of them, its key and that of the first image with these codes.
    """

    levels: list[LevelUsage]
    overall: LevelUsage
    labels: LabelBalance | None
    duplicates: int
    duplicate_keys: list[tuple[str, str]]


def cache_statistics(cache: CodeCache) -> CacheStatistics:
    """Read all codes of a cache once, block by block, in memory for one block and a few 8-byte numbers per sample.

    Raises:
        CodaError: If a code is beyond the codebook, or a shard is damaged.
    """
    usage, hashes = _count_and_hash(cache)
    repeated = _repeated_images(cache, hashes)
    variants = len(cache.manifest["variants"])
    named = [(cache.key(int(i) * variants), cache.key(int(first) * variants)) for i, first in repeated[:_NAMED]]
    balance = label_balance(cache.labels[::variants].numpy())
    return CacheStatistics(usage.per_level(), usage.overall(), balance, len(repeated), named)


def label_balance(labels: np.ndarray) -> LabelBalance | None:
    """Class balance of labels (N,), -1 for an image without one; None if there are no labels."""
    _, counts = np.unique(labels[labels >= 0], return_counts=True)
    if not len(counts):
        return None
    frequencies = counts / counts.sum()
    entropy = float(-(frequencies * np.log(frequencies)).sum())
    return LabelBalance(
        images=int(counts.sum()),
        classes=len(counts),
        fewest=int(counts.min()),
        median=float(np.median(counts)),
        most=int(counts.max()),
        evenness=entropy / math.log(len(counts)) if len(counts) > 1 else 1.0,
    )


def _count_and_hash(cache: CodeCache) -> tuple[CodeUsage, np.ndarray]:
    """Usage over all samples, and a hash of each image's first variant (N,) int64: Σ weight_t · code_t mod 2⁶⁴."""
    usage, variants = CodeUsage(cache.layout), len(cache.manifest["variants"])
    weights = np.random.default_rng(0).integers(-(1 << 63), 1 << 63, cache.layout.num_tokens) | 1
    hashes = np.empty(cache.num_images, np.int64)
    step = max(1, _BLOCK // variants)
    with progress("Counting codes", total=cache.num_images, unit="images") as bar:
        for start in range(0, cache.num_images, step):
            stop = min(start + step, cache.num_images)
            codes, _ = cache.batch(torch.arange(start * variants, stop * variants))
            if int(codes.max()) >= cache.layout.codebook_size:
                beyond = f"code {int(codes.max())}, beyond a codebook of {cache.layout.codebook_size}"
                raise CodaError(f"{cache.path} is damaged: it holds {beyond}; coda inspect --verify names the file")
            usage.update(codes)
            hashes[start:stop] = codes[::variants].numpy() @ weights
            bar.advance(stop - start)
    return usage, hashes


def _repeated_images(cache: CodeCache, hashes: np.ndarray) -> np.ndarray:
    """Images with the codes of an earlier one, and the first image with these codes, (R, 2)."""
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    leaders = first[group]
    repeated = np.flatnonzero(leaders != np.arange(len(hashes)))
    pairs = np.stack([repeated, leaders[repeated]], axis=1)
    same = [np.empty(0, bool)]
    with progress("Comparing codes", total=len(pairs), unit="pairs") as bar:
        for block in torch.from_numpy(pairs * len(cache.manifest["variants"])).split(_BLOCK):
            one, other = (cache.batch(samples)[0] for samples in block.unbind(1))
            same.append((one == other).all(dim=1).numpy())  # equal hashes are nearly always equal codes
            bar.advance(len(block))
    return pairs[np.concatenate(same)]
