from __future__ import annotations

import torch

from coda.benchmarks.rungs.perturbation import near_codes, perturb_codes


def test_near_codes_are_the_nearest_others() -> None:
    table = torch.arange(100.0)[:, None]
    near = near_codes(table)
    assert near.shape == (100, 2)
    assert sorted(near[50].tolist()) == [49, 51]
    assert near[0].tolist() == [1, 2]
    repeated = near_codes(torch.zeros(3, 2))
    assert all(i not in row for i, row in enumerate(repeated.tolist()))


def test_perturbing_replaces_that_share_by_near_codes() -> None:
    near = near_codes(torch.arange(200.0)[:, None])
    codes = torch.randint(200, (40, 50), generator=torch.Generator().manual_seed(0))
    found = perturb_codes(codes, near, 0.1, range(40), seed=3)
    changed = found != codes
    assert 0.07 < float(changed.float().mean()) < 0.13
    assert int((found - codes).abs().max()) <= 4
    assert len((found - codes)[changed].abs().unique()) > 1
    halves = [perturb_codes(codes[part], near, 0.1, range(40)[part], seed=3) for part in (slice(13), slice(13, 40))]
    assert torch.equal(torch.cat(halves), found)  # neither chance nor the batch size
    assert torch.equal(perturb_codes(codes, near, 0.0, range(40), seed=3), codes)
