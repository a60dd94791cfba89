from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coda.benchmarks import Report, tokenizing_scale
from coda.benchmarks.cache_cost import manifest_cost, shard_cost
from coda.benchmarks.source_cost import source_cost
from coda.benchmarks.tokenizing_run import TokenizingRun, simulate
from coda.tokenizer import CodaError, CodeLayout
from coda.tokenizer.code_cache import ShardRows
from coda.tokenizer.code_cache.format import write_shard

# Everything equally fast, the storage out of the way.
EVEN = TokenizingRun(
    images=64_000,
    gpus=4,
    shard_size=1000,
    batch_size=20,
    workers=4,
    encode_rate=200,
    decode_rate=100,
    decode_spread=0,
    device_spread=0,
    image_bytes=100_000,
    row_bytes=1400,
    bandwidth=1e12,
    request_seconds=0,
    flush_seconds=0.001,
    listing_seconds=5,
)


def test_the_shares_are_those_of_the_run() -> None:
    run = replace(EVEN, images=10_500, gpus=4)  # eleven shards
    assert [len(share) for share in run.shares] == [2, 3, 3, 3]
    assert [span for share in run.shares for span in share][-1] == range(10_000, 10_500)
    assert run.most_images == 3000
    assert sum(map(len, replace(EVEN, images=10, gpus=4).shares)) == 1  # the others have nothing to do


@pytest.mark.parametrize(
    ("changes", "bottleneck"),
    [
        ({}, "devices"),
        ({"workers": 1}, "decoding"),
        ({"workers": 0}, "decoding"),
        ({"gpus": 1}, "devices"),
        ({"bandwidth": 3e7}, "storage"),
        ({"request_seconds": 0.05}, "decoding"),
        ({"listing_seconds": 1000}, "listing"),
        ({"images": 60_000, "gpus": 40}, "devices"),  # 60 shards: some have one, some two
    ],
)
def test_paper_and_simulation_agree_where_everything_is_even(changes: dict[str, float], bottleneck: str) -> None:
    run = replace(EVEN, **changes)  # type: ignore[arg-type]
    assert run.bottleneck == bottleneck
    assert simulate(run).seconds == pytest.approx(run.paper_seconds, rel=0.03)


def test_loading_processes_that_keep_up() -> None:
    needed = replace(EVEN, request_seconds=0.001).workers_needed  # 11 ms of an image against 5 on the device
    assert needed == 3
    enough, few = (replace(EVEN, request_seconds=0.001, workers=workers) for workers in (needed, needed - 1))
    assert enough.bottleneck == "devices" and few.bottleneck == "decoding"


def test_the_least_that_a_run_can_take_is_never_undercut() -> None:
    run = replace(EVEN, decode_spread=0.5, device_spread=0)
    assert simulate(run).seconds > run.listing_seconds + run.most_images / run.encode_rate


def test_uneven_devices_make_the_others_wait() -> None:
    even = simulate(EVEN)
    assert even.waiting_share == pytest.approx(0, abs=1e-6)
    uneven = simulate(replace(EVEN, device_spread=0.2), seed=1)
    assert uneven.waiting_share > 0.05
    assert uneven.seconds > 1.05 * even.seconds
    assert uneven.seconds == max(uneven.finished) > min(uneven.finished)


def test_large_shards_make_the_others_wait() -> None:
    run = replace(EVEN, gpus=48, listing_seconds=0)
    coarse, fine = (simulate(replace(run, shard_size=size)) for size in (1000, 100))
    assert coarse.waiting_share > 0.2 > fine.waiting_share  # 64 shards for 48 processes, and 640
    assert coarse.seconds > 1.3 * fine.seconds


def test_images_of_uneven_size_hold_few_batches_up() -> None:
    """A slow picture delays its batch; what loads ahead makes up for it where there are loaders to spare."""
    even, uneven = (simulate(replace(EVEN, decode_spread=spread)).seconds for spread in (0.0, 1.0))
    assert even <= uneven < 1.05 * even
    scarce = replace(EVEN, workers=2, batch_size=2)  # two loaders keep up on average alone
    even, uneven = (simulate(replace(scarce, decode_spread=spread)).seconds for spread in (0.0, 1.0))
    assert uneven > 1.05 * even


def test_the_same_seed_gives_the_same_run() -> None:
    run = replace(EVEN, decode_spread=0.5, device_spread=0.05)
    assert simulate(run, seed=3) == simulate(run, seed=3)
    assert simulate(run, seed=3) != simulate(run, seed=4)


def test_slow_runs_save_what_is_at_hand() -> None:
    quick, slow = (replace(EVEN, images=4000, encode_rate=rate) for rate in (200, 20))
    codes = 4000 * EVEN.row_bytes
    assert simulate(quick).bytes_written == pytest.approx(codes)  # a shard is whole within ten seconds
    assert simulate(slow).bytes_written > 2 * codes


def test_bytes_of_shards_are_those_of_real_ones(tmp_path: Path) -> None:
    rows = 500
    numbers = torch.arange(rows)
    keys = [f"n01440764/n01440764_{10000 + i}.JPEG" for i in range(rows)]
    codes = torch.randint(4096, (rows, 1, 85))
    write_shard(
        tmp_path / "shard",
        ShardRows(codes, numbers, numbers.clone(), keys),
        CodeLayout([1, 2, 4, 8], 4096),
        {"shard": 0},
    )
    expected = shard_cost(85, 4096).of([range(rows)])
    assert (tmp_path / "shard").stat().st_size == pytest.approx(expected, rel=0.002)
    assert shard_cost(85, 256).row == shard_cost(85, 4096).row - 85  # a byte a code


def test_the_manifest_grows_with_the_shards_and_with_what_is_left_out() -> None:
    cost = shard_cost(85, 4096)
    few, many = (manifest_cost(count, 1000, cost, skipped_share=0.0) for count in (100_000, 1_000_000))
    assert (few.shards, many.shards) == (100, 1000)
    assert 5 < many.bytes / few.bytes < 11
    assert manifest_cost(100_000, 1000, cost, skipped_share=0.01).bytes > 3 * few.bytes
    assert many.noting_seconds(1) == pytest.approx(500 * many.note_seconds)


@pytest.mark.parametrize("kind", ["folder", "archive", "table"])
def test_the_cost_of_a_source_is_one_items(kind: str) -> None:
    cost = source_cost(kind, 1500)
    assert cost.listing > 0 and cost.fingerprint > 0
    assert 8 < cost.memory < 2000
    if kind == "folder":
        assert cost.requests == 1
    elif os.path.exists("/proc/self/io"):
        assert cost.requests is not None
        assert (0.9 < cost.requests < 3) if kind == "archive" else cost.requests < 0.1
    slow = cost.seconds(1000, request_seconds=1.0)
    assert slow - cost.seconds(1000, request_seconds=0.0) == pytest.approx(1000 * (cost.requests or 0))


def test_report_of_scale(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "scale"
    report = tokenizing_scale(out, (20_000, 50_000), (1, 4), 85, 4096, 1000, data=photographs, listed=300)
    assert [row[:4] for row in report.tables[0].rows] == [
        [20_000, 1, 20, 20], [20_000, 4, 20, 5], [50_000, 1, 50, 50], [50_000, 4, 50, 13],
    ]  # fmt: skip
    for images in ("20,000", "50,000"):
        one, four = (report[f"{images} images, {gpus}, simulated"] or 0 for gpus in ("1 GPU", "4 GPUs"))
        assert 0 < one / 4.5 < four < one
        assert report[f"{images} images, 1 GPU, on paper"] == pytest.approx(one, rel=0.2)
    assert (report["loading processes that keep up with one GPU"] or 0) >= 1
    assert [row[3] for row in report.tables[1].rows] == [22, 52]
    assert [row[:2] for row in report.tables[2].rows][:3] == [[20_000, kind] for kind in ("folder", "archive", "table")]
    assert "assumption" in report.warnings[0]
    assert "measured on 24 images" in report.provenance["decode rate and spread"]
    assert Report.load(out).to_json() == report.to_json()


def test_wrong_requests(tmp_path: Path) -> None:
    for wrong in ({"images": ()}, {"gpus": (0,)}, {"encode_rate": 0.0}, {"workers": -1}):
        with pytest.raises(CodaError, match="above zero"):
            tokenizing_scale(tmp_path / "scale", **wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
