from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from PIL import ImageFile

from coda.benchmarks.peers.flow_unet import unet_config
from coda.benchmarks.peers.muse import muse_problem
from coda.benchmarks.peers.peer import FlatPeer, Peer, PeerSetup
from coda.benchmarks.peers.training import make_peer
from coda.benchmarks.settings import PEERS, PeersSettings
from coda.tokenizer import CodaError
from coda.tokenizer.code_cache import CodeCache

WITHOUT_MUSE = [name for name in PEERS if name != "muse"]


@pytest.fixture(scope="module")
def cache(level_cache: Path) -> CodeCache:
    return CodeCache(level_cache)


@pytest.fixture(scope="module")
def setup(cache: CodeCache) -> PeerSetup:
    settings = PeersSettings(width=32, depth=2, heads=2, batch_size=16, sampling_steps=6, flow_steps=3)
    return PeerSetup.of(cache, (16, 16), settings)


@pytest.fixture(scope="module")
def trained(setup: PeerSetup, cache: CodeCache) -> Any:
    """`trained(name)`: a peer after some steps on one batch, and its losses; each is trained once."""
    found: dict[str, tuple[Peer, list[float]]] = {}

    def train(name: str) -> tuple[Peer, list[float]]:
        if name not in found:
            if name == "muse" and (problem := muse_problem()) is not None:
                pytest.skip(problem)
            peer = make_peer(name, setup).train()
            optimizer = torch.optim.AdamW(peer.parameters(), lr=3e-3)
            batch, labels = cache.batch(range(16))
            if peer.learns == "images":
                batch = (labels.float() - 1)[:, None, None, None].expand(-1, 3, 16, 16)
            losses = []
            for step in range(40):
                loss = peer.loss(batch, labels, step)
                loss.backward()
                assert [n for n, p in peer.named_parameters() if p.requires_grad and p.grad is None] == []
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
            found[name] = peer.eval(), losses
        return found[name]

    return train


@pytest.mark.parametrize("name", PEERS)
def test_the_loss_falls(name: str, trained: Any) -> None:
    _, losses = trained(name)
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.parametrize("name", PEERS)
def test_samples_follow_from_labels_and_seeds(name: str, trained: Any) -> None:
    peer, _ = trained(name)
    labels, seeds = [0, 1, 2, -1], range(7, 11)
    samples = peer.sample(labels, seeds)
    if peer.learns == "codes":
        assert samples.shape == (4, 21) and samples.dtype == torch.int64
        assert 0 <= int(samples.min()) <= int(samples.max()) < 8
    else:
        assert samples.shape == (4, 3, 16, 16) and float(samples.abs().max()) <= 1
    assert torch.equal(peer.sample(labels, seeds), samples)
    assert not torch.equal(peer.sample(labels, range(20, 24)), samples)
    assert not torch.equal(peer.sample([1, 2, 0, -1], seeds), samples)


@pytest.mark.parametrize("name", [name for name in PEERS if name != "amused"])
def test_a_sample_does_not_depend_on_its_batch(name: str, trained: Any) -> None:
    peer, _ = trained(name)
    together = peer.sample([0, 1, 2], [3, 4, 5])
    torch.testing.assert_close(peer.sample([1], [4]), together[1:2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PEERS)
def test_weights_follow_from_the_seed(name: str, setup: PeerSetup, trained: Any) -> None:
    trained(name)  # skips where the package is missing
    torch.manual_seed(5)
    one = make_peer(name, setup).state_dict()
    torch.manual_seed(6)
    other = make_peer(name, setup).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["ours", "flattened", "amused", "muse"])
def test_training_lowers_the_held_out_bound(name: str, setup: PeerSetup, cache: CodeCache, trained: Any) -> None:
    peer, _ = trained(name)
    samples = torch.arange(48, 96)
    bound, before = (each.held_out_loss(cache, samples) for each in (peer, make_peer(name, setup).eval()))
    assert bound is not None and before is not None
    assert 0 < bound < 0.8 * before
    assert peer.held_out_loss(cache, samples) == bound
    assert peer.held_out_loss(cache, samples[:0]) is None


def test_the_bound_of_a_uniform_guess_is_log_k(setup: PeerSetup, cache: CodeCache) -> None:
    class Uniform(FlatPeer):
        title = "uniform"
        device = torch.device("cpu")  # type: ignore[assignment]

        def features(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*codes.shape, 8)

    assert Uniform(setup).held_out_loss(cache, torch.arange(10)) == pytest.approx(math.log(8))


def test_only_the_flattened_one_attends_across_levels(cache: CodeCache, trained: Any) -> None:
    codes, labels = cache.batch([0])
    other = codes.clone()
    other[0, 0] = (codes[0, 0] + 1) % 8  # level 0
    flattened, ours = trained("flattened")[0], trained("ours")[0].objective.transformer
    with torch.no_grad():
        seen = [flattened.features(each, labels)[0, 5:] for each in (codes, other)]
        nothing = [torch.zeros(1, 3, 4, 4)] * 3
        within = [ours(each, nothing, labels).features[0, 5:] for each in (codes, other)]
    assert not torch.allclose(*seen) and torch.equal(*within)


def test_ours_and_the_flattened_one_have_the_same_parameters(setup: PeerSetup) -> None:
    assert make_peer("ours", setup).num_parameters == make_peer("flattened", setup).num_parameters


def test_codes_fill_the_smallest_square(setup: PeerSetup) -> None:
    peer: Any = make_peer("amused", setup)
    codes = torch.arange(21)[None] % 8
    square = peer.squared(codes)
    assert square.shape == (1, 5, 5)
    assert torch.equal(square.flatten()[:21], codes[0]) and set(square.flatten()[21:].tolist()) == {9}


@pytest.mark.parametrize(("size", "blocks"), [((64, 64), 4), ((32, 48), 3), ((16, 16), 2), ((15, 15), 1)])
def test_the_unet_has_about_so_many_parameters(size: tuple[int, int], blocks: int) -> None:
    config = unet_config(size, 3, 2_000_000)
    model = UNet2DModel(**config)
    assert len(config["block_out_channels"]) == blocks
    assert 1_500_000 < sum(p.numel() for p in model.parameters()) < 2_500_000
    assert model(torch.zeros(1, 3, *size), 0.0, class_labels=torch.tensor([3])).sample.shape == (1, 3, *size)


def test_muse_leaves_the_reading_of_images_as_it_is() -> None:
    problem = muse_problem()
    assert problem is None or "pip install 'coda[peers]'" in problem
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CodaError, match="not a multiple of 3 heads"):
        PeersSettings(width=32, heads=3)
    with pytest.raises(CodaError, match="each once"):
        PeersSettings(peers=("ours", "ours"))
