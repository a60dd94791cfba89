"""The loss: cross-entropy at masked cells, in chunks, averaged per level."""

import pytest
import torch
import torch.nn.functional as F

from coda.generator.masking import TrainingDraw, draw_training
from coda.generator.objective import MaskedCodeObjective, chunked_cross_entropy
from coda.generator.transformer import MaskGitTransformer
from coda.tokenizer.quantizer.resampling import prefix_latents

K = 24


@pytest.fixture
def model():
    model = MaskGitTransformer([1, 2, 3], K, latent_channels=3, num_classes=4, hidden_size=16, depth=1, num_heads=2)
    model.set_value_table(torch.randn(K, 3))
    torch.nn.init.normal_(model.blocks[0].modulation.up.weight)
    torch.nn.init.normal_(model.modulation_out.up.weight)
    return model


@pytest.fixture
def batch(model):
    """Codes, labels and random choices of eight images."""
    codes = torch.randint(0, K, (8, model.layout.num_tokens))
    draw = draw_training(model.layout, 8, torch.Generator().manual_seed(1), class_dropout=0.5)
    return codes, torch.randint(0, 4, (8,)), draw


def all_masked(layout, **changed):
    """Random choices for two images, as far as they are not given."""
    parts = dict(
        masked=torch.ones(2, layout.num_tokens, dtype=torch.bool),
        corrupted=torch.zeros(2, layout.num_tokens, dtype=torch.bool),
        source_images=torch.tensor([1, 0]),
        unconditional=torch.zeros(2, dtype=torch.bool),
        mean_masked=torch.tensor([h * w for h, w in layout.sides]).float(),
    )
    return TrainingDraw(**(parts | changed))


@pytest.mark.parametrize("rows", [1, 7, 50, 64])
@pytest.mark.parametrize(("dtype", "smoothing"), [(torch.float32, 0.0), (torch.float64, 0.0), (torch.float32, 0.3)])
def test_chunks_equal_the_dense_loss(rows, dtype, smoothing):
    features = torch.randn(50, 8, dtype=dtype, requires_grad=True)
    head = torch.randn(K, 8, dtype=dtype, requires_grad=True)
    targets, weights = torch.randint(0, K, (50,)), torch.rand(50)
    dense = F.cross_entropy(features @ head.T, targets, reduction="none")
    smoothed = F.cross_entropy(features @ head.T, targets, reduction="none", label_smoothing=smoothing)
    expected = torch.autograd.grad((smoothed * weights).sum() * 3, (features, head))
    loss, each = chunked_cross_entropy(features, head, targets, weights, rows * K, smoothing)
    torch.testing.assert_close(loss.double(), (smoothed * weights).sum().double(), atol=1e-4, rtol=1e-5)
    gradients = torch.autograd.grad(loss * 3, (features, head))
    torch.testing.assert_close(each, dense.float(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


PREPARE = """
from coda.generator.objective import LOGITS_AT_ONCE, chunked_cross_entropy

def step(codebook_size, rows, logits_at_once):
    features = torch.randn(rows, 16, requires_grad=True)
    head = torch.randn(codebook_size, 16, requires_grad=True)
    targets = torch.randint(0, codebook_size, (rows,))
    weights = torch.full((rows,), 1 / rows)
    chunked_cross_entropy(features, head, targets, weights, logits_at_once)[0].backward()

step(64, 8, LOGITS_AT_ONCE)
"""


def test_memory_is_that_of_a_chunk(mebibytes):
    dense = 65_536 * 1_024 * 4 / 2**20  # 256 MiB for the logits alone
    assert mebibytes(PREPARE, "step(65_536, 1_024, LOGITS_AT_ONCE)") < 0.58 * dense
    assert mebibytes(PREPARE, "step(65_536, 1_024, 65_536 * 1_024)") > dense


def test_the_loss_is_the_mean_over_levels_at_masked_cells(model, batch):
    layout, (codes, labels, draw) = model.layout, batch
    cost = MaskedCodeObjective(model)(codes, labels, draw)

    inputs, labels = torch.where(draw.masked, K, codes), torch.where(draw.unconditional, 4, labels)
    features = model(inputs, prefix_latents(codes, layout, model.value_table)[:-1], labels).features
    each = F.cross_entropy(model.logits(features).flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
    levels = []
    for level in range(3):
        part = slice(layout.offsets[level], layout.offsets[level + 1])
        levels.append(each[:, part][draw.masked[:, part]].mean())
    torch.testing.assert_close(cost.level_losses, torch.stack(levels).detach())
    torch.testing.assert_close(cost.loss, torch.stack(levels).mean())
    assert not cost.level_losses.requires_grad


@pytest.mark.parametrize(
    ("law", "weights"), [("equal", [1, 1, 1]), ("sqrt", [1, 2, 3]), ("tokens", [1, 4, 9]), ("lognormal", None)]
)
@torch.no_grad()
def test_levels_are_weighed_by_law(model, batch, law, weights):
    objective = MaskedCodeObjective(model, law)
    cost = objective(*batch)
    shares = objective.level_weights
    if weights is None:
        assert shares[1] > max(shares[0], shares[2])
    else:
        torch.testing.assert_close(shares, torch.tensor(weights) / sum(weights))
    torch.testing.assert_close(cost.loss, (shares * cost.level_losses).sum())


@torch.no_grad()
def test_corruption_changes_the_prefixes_of_later_levels_and_no_target(model):
    layout, objective = model.layout, MaskedCodeObjective(model)
    codes, labels = torch.randint(0, K, (2, layout.num_tokens)), torch.tensor([0, 1])
    clean = objective(codes, labels, all_masked(layout)).level_losses
    corrupted = torch.zeros(2, layout.num_tokens, dtype=torch.bool)
    corrupted[:, layout.offsets[1] : layout.offsets[2]] = True
    other = objective(codes, labels, all_masked(layout, corrupted=corrupted)).level_losses
    assert torch.equal(other[:2], clean[:2])
    assert other[2] != clean[2]


@torch.no_grad()
def test_a_dropped_class_and_no_class_are_the_same(model):
    objective, layout = MaskedCodeObjective(model), model.layout
    codes, labels = torch.randint(0, K, (2, layout.num_tokens)), torch.tensor([0, 3])
    dropped = objective(codes, labels, all_masked(layout, unconditional=torch.ones(2, dtype=torch.bool))).loss
    assert dropped == objective(codes, torch.tensor([-1, -1]), all_masked(layout)).loss
    assert dropped != objective(codes, labels, all_masked(layout)).loss


def test_every_parameter_learns(model, batch):
    MaskedCodeObjective(model)(*batch).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_mixed_precision_is_close(model, batch):
    objective = MaskedCodeObjective(model)
    full = objective(*batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = objective(*batch).loss
    mixed.backward()
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, atol=0.1, rtol=0.02)
