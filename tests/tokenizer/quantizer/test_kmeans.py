import copy

import pytest
import torch

from coda.tokenizer import CodaError, ResidualQuantizer
from coda.tokenizer.quantizer.kmeans import initialize_nearest_neighbor, residual_kmeans
from coda.tokenizer.quantizer.resampling import downsample, upsample


def _residual(latents: torch.Tensor, sides: tuple[int, ...], codebook: torch.Tensor) -> float:
    """Root mean square of the residual after nearest-neighbor residual quantization."""
    residual = latents.double()
    for side in sides:
        level = downsample(residual, (side, side)).movedim(1, -1)
        nearest = torch.cdist(level.flatten(0, 2), codebook.double()).argmin(dim=1)
        values = codebook.double()[nearest].reshape(level.shape).movedim(-1, 1)
        residual = residual - upsample(values, (sides[-1], sides[-1]))
    return float(residual.square().mean().sqrt())


def test_clusters_are_found() -> None:
    centers = torch.randn(8, 4) * 10
    latents = centers[torch.randint(8, (400,))].reshape(400, 4, 1, 1) + 0.01 * torch.randn(400, 4, 1, 1)
    codebook = residual_kmeans(latents, (1,), 32)
    assert torch.cdist(centers, codebook).amin(dim=1).max() < 0.05


def test_one_codebook_serves_all_levels_and_levels_help() -> None:
    latents = torch.nn.functional.interpolate(torch.randn(200, 4, 2, 2), size=(4, 4), mode="bicubic")
    latents = latents + 0.2 * torch.randn_like(latents)
    levels = residual_kmeans(latents, (1, 2, 4), 64)
    assert levels.shape == (64, 4)
    alone = residual_kmeans(latents, (4,), 64)
    assert _residual(latents, (1, 2, 4), levels) < 0.8 * _residual(latents, (4,), alone)
    assert _residual(latents, (1, 2, 4), levels) < 0.7 * _residual(
        latents, (1, 2, 4), latents.movedim(1, -1).flatten(0, 2)[:64]
    )


def test_no_code_stays_dead_if_there_are_enough_vectors() -> None:
    # Nine tenths of the vectors are one point, so most codes start there.
    vectors = torch.cat([torch.zeros(1800, 3), torch.randn(200, 3)])[:, :, None, None]
    codebook = residual_kmeans(vectors, (1,), 32)
    used = torch.cdist(vectors.flatten(1), codebook).argmin(dim=1).unique()
    assert len(used) == 32


def test_the_seed_decides_and_too_few_images_are_refused() -> None:
    latents = torch.randn(64, 4, 2, 2)
    first, again, other = (residual_kmeans(latents, (1, 2), 16, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(CodaError, match="2 images give 10 vectors for 16 codes; k-means needs at least 4"):
        residual_kmeans(latents[:2], (1, 2), 16)


@pytest.mark.parametrize(("norm", "width"), [("rms_norm", 32), ("rms_norm", 17), ("layer_norm", 32)])
def test_initial_retrieval_is_nearest_neighbor(norm: str, width: int) -> None:
    codebook, vectors = torch.randn(4096, 16), torch.randn(8000, 16)
    quantizer = ResidualQuantizer(16, 4096, (1,), attention_dim=width, norm=norm)
    initialize_nearest_neighbor(quantizer, codebook, spread=1.0)
    codes = quantizer.encode(vectors[:, :, None, None]).squeeze(1)
    nearest = torch.cdist(vectors.double(), codebook.double()).argmin(dim=1)
    assert (codes == nearest).double().mean() >= (0.999 if norm == "rms_norm" else 0.995)
    # Where they differ, the distances are almost equal.
    errors = [(vectors - codebook[found]).square().sum(dim=1).mean() for found in (codes, nearest)]
    assert errors[0] <= errors[1] * 1.00001
    assert torch.equal(quantizer.value_table(), codebook)


@pytest.mark.parametrize(("norm", "width"), [("rms_norm", 32), ("layer_norm", 32)])
def test_initial_retrieval_is_nearest_neighbor_in_a_metric(norm: str, width: int) -> None:
    codebook, vectors = torch.randn(512, 16), torch.randn(2000, 16)
    rotation = torch.linalg.qr(torch.randn(16, 16)).Q
    metric = rotation @ torch.diag(torch.linspace(0.2, 2.0, 16)) @ rotation.T
    quantizer = ResidualQuantizer(16, 512, (1,), attention_dim=width, norm=norm)
    initialize_nearest_neighbor(quantizer, codebook @ metric, metric=metric)
    torch.testing.assert_close(quantizer.value_table(), codebook, atol=1e-4, rtol=1e-4)
    codes = quantizer.encode(vectors[:, :, None, None]).squeeze(1)
    distances = torch.cdist((vectors @ metric).double(), (codebook @ metric).double())
    assert (codes == distances.argmin(dim=1)).double().mean() >= 0.99
    assert (codes == torch.cdist(vectors, codebook).argmin(dim=1)).double().mean() < 0.9


def test_softness_is_the_width_of_the_soft_retrieval() -> None:
    codebook = torch.randn(512, 8)
    quantizer = ResidualQuantizer(8, 512, (1,), attention_dim=16, norm="rms_norm")
    vectors = torch.randn(50, 8)
    for softness in (0.3, 1.0):
        initialize_nearest_neighbor(quantizer, codebook, spread=1.0, softness=softness)
        with torch.no_grad():
            found = (quantizer.queries(vectors[:, :, None, None]) @ quantizer.keys().T).softmax(dim=1)
        expected = (-torch.cdist(vectors, codebook).square() / (2 * softness**2)).softmax(dim=1)
        assert (found - expected).abs().max() < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": None, "attention_dim": 16}, "needs norm rms_norm or layer_norm"),
        ({"norm": "rms_norm", "attention_dim": 8}, "attention width of 9 at least, not 8"),
        ({"norm": "layer_norm", "attention_dim": 9}, "attention width of 10 at least, not 9"),
    ],
)
def test_a_quantizer_that_cannot_be_initialized_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(CodaError, match=message):
        initialize_nearest_neighbor(ResidualQuantizer(8, 16, (1,), **settings), torch.randn(16, 8))


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_entropies_of_the_nearest_neighbor_start_and_their_gradients_are_those_of_float64(norm: str) -> None:
    latents, layout = torch.randn(64, 4, 4, 4), (1, 2, 4)
    quantizer = ResidualQuantizer(4, 64, layout, attention_dim=8, norm=norm)
    initialize_nearest_neighbor(quantizer, residual_kmeans(latents, layout, 64))
    exact = copy.deepcopy(quantizer).double()
    found, expected = quantizer(latents), exact(latents.double())
    torch.testing.assert_close(found.sample_entropies.double(), expected.sample_entropies, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.batch_entropies.double(), expected.batch_entropies, atol=1e-5, rtol=0)
    found.entropy_loss.backward()
    expected.entropy_loss.backward()
    for name in ("codebook.weight", "to_q.weight", "to_k.weight", "to_k.bias", "norm_q.weight", "norm_k.weight"):
        ours, theirs = (module.get_parameter(name).grad for module in (quantizer, exact))
        assert ours is not None and theirs is not None
        assert (ours - theirs).abs().max() < 5e-3 * theirs.abs().max(), name
