from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from coda.tokenizer.code_cache import CacheWriter, CodeCache, ShardRows, ShuffledBatches
from coda.tokenizer.foundation.seeding import EndlessOrder, epoch_order
from coda.tokenizer.layout import CodeLayout

from .conftest import make_header

IMAGES = 37


@pytest.fixture
def cache(tmp_path: Path) -> CodeCache:
    """37 images of two codes in four shards; an image's label is its place, so that a batch says what it holds."""
    header = make_header(CodeLayout([(1, 2)], 100), IMAGES, 10, num_classes=IMAGES)
    writer = CacheWriter(tmp_path / "cache", header, torch.zeros(100, 3))
    for span in writer.remaining():
        places = torch.arange(span.start, span.stop)
        codes = torch.stack([places, 99 - places], dim=1)[:, None]
        writer.append(ShardRows(codes, places, places, [str(i) for i in span]), [], span.stop)
    writer.finish()
    writer.close()
    return CodeCache(tmp_path / "cache")


def labels(batches: ShuffledBatches, steps: range) -> list[list[int]]:
    return [batches[step][1].tolist() for step in steps]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own(cache: CodeCache) -> None:
    flat = joined(labels(ShuffledBatches(cache, 8, seed=3), range(14)))  # three epochs of 37, and one more sample
    epochs = [flat[i * IMAGES : (i + 1) * IMAGES] for i in range(3)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert epochs == [epoch_order(3, epoch, IMAGES).tolist() for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert flat != joined(labels(ShuffledBatches(cache, 8, seed=4), range(14)))


def test_codes_belong_to_their_labels(cache: CodeCache) -> None:
    codes, places = ShuffledBatches(cache, 16)[3]
    assert codes.dtype == torch.int64 and torch.equal(codes, torch.stack([places, 99 - places], dim=1))


@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_all_processes_are_the_batch(cache: CodeCache, count: int) -> None:
    whole = labels(ShuffledBatches(cache, 12), range(9))
    shares = [labels(ShuffledBatches(cache, 12, process=(rank, count)), range(9)) for rank in range(count)]
    assert [joined(parts) for parts in zip(*shares, strict=True)] == whole
    assert all(len(share) == 12 // count for part in shares for share in part)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reading_goes_on_anywhere_with_any_number_of_processes(cache: CodeCache, workers: int) -> None:
    batches = ShuffledBatches(cache, 5, seed=1)
    loader = DataLoader(batches, batch_size=None, sampler=range(6, 20), num_workers=workers)
    assert [found.tolist() for _, found in loader] == labels(batches, range(6, 20))


def test_places_of_the_endless_order_across_epochs_and_with_gaps() -> None:
    order = EndlessOrder(7, seed=0)
    whole = torch.cat([epoch_order(0, epoch, 7) for epoch in range(5)])
    for places in (range(35), range(5, 9), range(3, 33, 4), range(20, 20), range(34, 35)):
        assert torch.equal(order.items(places), whole[places.start : places.stop : places.step])
