from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import coda.benchmarks.cache_statistics as module
from coda.benchmarks.cache_statistics import cache_statistics, label_balance
from coda.tokenizer import CodaError, CodeCache, CodeLayout
from coda.tokenizer.code_cache import CacheWriter, ShardRows
from coda.tokenizer.images import Skipped

LAYOUT = CodeLayout([1, (2, 3)], 11)
SHARD = 5


def make_cache(
    out: Path, codes: torch.Tensor, labels: list[int], skipped: tuple[int, ...] = (), layout: CodeLayout = LAYOUT
) -> CodeCache:
    """A cache of codes (n, V, T) of items 0 … n − 1 but the skipped ones, five per shard."""
    head = {
        "format": "coda code cache",
        "format_version": 1,
        "tokenizer_fingerprint": "a" * 64,
        "layout": layout.to_json(),
        "variants": ["original", "mirrored"][: codes.shape[1]],
        "source": {"items": len(codes)},
        "num_classes": 4,
        "class_names": None,
        "shard_size": SHARD,
        "part": None,
    }
    writer = CacheWriter(out, head, torch.zeros(layout.codebook_size, 3))
    for span in writer.remaining():
        kept = [i for i in span if i not in skipped]
        rows = ShardRows(codes[kept], torch.tensor(labels)[kept], torch.tensor(kept).long(), [f"{i}.png" for i in kept])
        writer.append(rows, [Skipped(f"{i}.png", "is empty", i) for i in span if i in skipped], span.stop)
    cache = CodeCache(writer.finish())
    writer.close()
    return cache


def entropy_bits(values: list[int]) -> float:
    """Shannon entropy of the frequencies."""
    return -sum(n / len(values) * math.log2(n / len(values)) for n in Counter(values).values())


@pytest.mark.parametrize("variants", [1, 2])
def test_usage_is_that_of_all_variants(tmp_path: Path, variants: int) -> None:
    codes = torch.randint(11, (23, variants, 7))
    found = cache_statistics(make_cache(tmp_path / "cache", codes, [0] * 23))
    flat = codes.flatten(0, 1)
    for level, part in zip([*found.levels, found.overall], [flat[:, :1], flat[:, 1:], flat], strict=True):
        values = part.flatten().tolist()
        assert level.tokens == len(values)
        assert level.codes_seen == len(set(values))
        assert level.usage == pytest.approx(100 * len(set(values)) / 11)
        assert level.bits == pytest.approx(entropy_bits(values))
        assert level.perplexity == pytest.approx(2**level.bits)
    assert [level.level for level in found.levels] == [0, 1]


def test_labels_are_counted_by_image_and_not_by_sample(tmp_path: Path) -> None:
    labels = [0] * 6 + [1] * 2 + [3] * 3 + [-1] * 4
    found = cache_statistics(make_cache(tmp_path / "cache", torch.randint(11, (15, 2, 7)), labels)).labels
    assert found is not None
    assert (found.images, found.classes, found.fewest, found.median, found.most) == (11, 3, 2, 3, 6)
    assert found.evenness == pytest.approx(entropy_bits([label for label in labels if label >= 0]) / math.log2(3))


def test_balance_at_its_ends() -> None:
    assert label_balance(np.array([-1, -1])) is None
    even, single = label_balance(np.array([0, 1, 1, 0])), label_balance(np.array([2, 2, -1]))
    assert even is not None and even.evenness == pytest.approx(1)
    assert single is not None and (single.classes, single.evenness) == (1, 1)
    uneven = label_balance(np.array([0] * 9_999 + [1]))
    assert uneven is not None and 0 < uneven.evenness < 0.01


def test_duplicates_are_found_across_shards_and_lead_back_to_the_first(tmp_path: Path) -> None:
    codes = torch.arange(23)[:, None, None].expand(23, 1, 7).remainder(11).clone()
    codes[:, 0, 0] = torch.arange(23) // 11  # all 23 differ
    codes[7], codes[12], codes[22] = codes[1], codes[1], codes[20]
    found = cache_statistics(make_cache(tmp_path / "cache", codes, [0] * 23, skipped=(3, 4)))
    assert found.duplicates == 3
    assert found.duplicate_keys == [("7.png", "1.png"), ("12.png", "1.png"), ("22.png", "20.png")]


def test_only_the_first_variant_makes_a_duplicate(tmp_path: Path) -> None:
    codes = torch.randint(11, (12, 2, 7))
    codes[:, 0, :2] = torch.stack([torch.arange(12) // 4, torch.arange(12) % 4], dim=1)
    codes[9, 0] = codes[2, 0]  # the mirrored ones differ
    codes[5, 1] = codes[4, 0]  # a mirrored one equals another's original
    found = cache_statistics(make_cache(tmp_path / "cache", codes, [0] * 12))
    assert (found.duplicates, found.duplicate_keys) == (1, [("9.png", "2.png")])


def test_duplicates_are_those_of_a_comparison(tmp_path: Path) -> None:
    codes = torch.randint(2, (30, 1, 3))  # of eight kinds
    found = cache_statistics(make_cache(tmp_path / "cache", codes, [0] * 30, layout=CodeLayout([1, (1, 2)], 11)))
    rows = [tuple(row) for row in codes[:, 0].tolist()]
    expected = [(i, rows.index(row)) for i, row in enumerate(rows) if rows.index(row) < i]
    assert found.duplicates == len(expected) > 3  # all are counted, a few named
    assert found.duplicate_keys == [(f"{i}.png", f"{first}.png") for i, first in expected[:3]]


def test_blocks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(tmp_path / "cache", torch.randint(2, (23, 2, 7)), [0] * 23)
    whole = cache_statistics(cache)
    for block in (1, 6):
        monkeypatch.setattr(module, "_BLOCK", block)
        assert cache_statistics(cache) == whole


def test_a_shard_without_a_readable_image(tmp_path: Path) -> None:
    codes = torch.randint(11, (12, 1, 7))
    codes[:, 0, :2] = torch.stack([torch.arange(12) // 4, torch.arange(12) % 4], dim=1)
    found = cache_statistics(make_cache(tmp_path / "cache", codes, [1] * 12, skipped=(5, 6, 7, 8, 9)))
    assert (found.levels[0].tokens, found.duplicates) == (7, 0)
    assert found.labels is not None and found.labels.images == 7


def test_codes_beyond_the_codebook_are_damage(tmp_path: Path) -> None:
    codes = torch.randint(11, (6, 1, 7))
    codes[5, 0, 3] = 11
    cache = make_cache(tmp_path / "cache", codes, [0] * 6)
    with pytest.raises(CodaError, match="code 11, beyond a codebook of 11"):
        cache_statistics(cache)
