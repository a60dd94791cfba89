"""The masked transformer: what it sees, how it is saved, how it is called."""

import json
import logging

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from coda.generator import MaskGitScheduler, MaskGitTransformer
from coda.generator.blocks import attend_within, position_features
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.quantizer.resampling import prefix_latents

K, NONE = 32, 5  # the mask, no class


def make(sides=(1, 2, (2, 3), 4), seed=0, trained=True):
    """A tiny transformer; `trained`: with modulation weights other than the initial zeros."""
    torch.manual_seed(seed)
    model = MaskGitTransformer(
        list(sides), K, latent_channels=3, num_classes=NONE, hidden_size=32, depth=2, num_heads=2, class_labels=[0, 3]
    )
    model.set_value_table(torch.randn(K, 3))
    if trained:
        for name, parameter in model.named_parameters():
            if name.endswith("modulation.up.weight") or name.startswith("modulation_out.up"):
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def model():
    return make()


@pytest.fixture
def batch(model):
    codes = torch.randint(0, K + 1, (2, model.layout.num_tokens))
    prefixes = prefix_latents(codes.clamp(max=K - 1), model.layout, model.value_table)[:-1]
    return codes, prefixes, torch.tensor([0, 4])


@torch.no_grad()
def test_every_part_of_the_input_is_seen(model, batch):
    codes, prefixes, labels = batch
    before = model(codes, prefixes, labels).features
    assert before.shape == (2, model.layout.num_tokens, 32)
    other = codes.clone()
    other[:, -1] = (other[:, -1] + 1) % K
    changed = (model(other, prefixes, labels).features != before).any(dim=2)
    assert changed[:, -16:].all()  # every cell of that level …
    assert not changed[:, :-16].any()  # … and no other level
    moved = [*prefixes[:3], prefixes[3] + 1]
    assert (model(codes, moved, labels).features != before).any(dim=2)[:, -16:].all()
    assert (model(codes, prefixes, torch.tensor([1, NONE])).features != before).any(dim=2).all()


@torch.no_grad()
def test_a_level_alone_gives_what_packed_levels_give(model, batch):
    codes, prefixes, labels = batch
    packed = model(codes, prefixes, labels).features
    for level, prefix in enumerate(prefixes):
        part = slice(model.layout.offsets[level], model.layout.offsets[level + 1])
        alone = model(codes[:, part], [prefix], labels, [level]).features
        torch.testing.assert_close(alone, packed[:, part], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cells", [(1, 4, 9, 16), (4, 9, 1), (9, 1, 4, 9, 2, 2), (4,)])
def test_small_levels_attended_together_give_what_each_gives_alone(cells):
    tensors = [torch.randn(2, sum(cells), 3, 8, requires_grad=True) for _ in range(3)]
    seen = torch.randn(2, sum(cells), 3, 8)
    alone, together = (attend_within(*tensors, cells, few=few) for few in (0, 8))
    torch.testing.assert_close(together, alone)
    found, expected = (torch.autograd.grad((each * seen).sum(), tensors) for each in (together, alone))
    torch.testing.assert_close(found, expected)


def test_levels_attended_together_compile():
    tensors = [torch.randn(2, 21, 2, 8) for _ in range(3)]
    compiled = torch.compile(attend_within, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors, (1, 4, 16), 64), attend_within(*tensors, (1, 4, 16), 64))


@torch.no_grad()
def test_cells_differ_by_position_and_level(model):
    masked = torch.full((1, model.layout.num_tokens), K)
    features = model(masked, [torch.zeros(1, 3, 4, 4)] * 4, torch.tensor([0])).features[0]
    distances = torch.cdist(features, features) + 100 * torch.eye(len(features))
    assert distances.min() > 1e-3


def test_equal_places_have_equal_positions():
    torch.testing.assert_close(position_features((1, 1))[0], position_features((3, 3))[4], atol=1e-5, rtol=0)
    torch.testing.assert_close(position_features((2, 2))[3], position_features((6, 6))[28], atol=1e-5, rtol=0)


def test_a_new_model_has_identity_blocks_and_logits_of_unit_variance(batch):
    codes, prefixes, labels = batch
    model = make(trained=False)
    features = model(codes, prefixes, labels).features
    assert torch.equal(features, model(codes, prefixes, torch.tensor([2, 3])).features)  # no class as yet
    assert 0.5 < model.logits(features).std() < 2
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_round_trip_keeps_every_bit(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    MaskGitScheduler(num_inference_steps=9).save_pretrained(tmp_path / "scheduler")
    loaded = MaskGitTransformer.from_pretrained(tmp_path)
    assert loaded.layout == model.layout
    assert loaded.class_labels == (0, 3)
    assert torch.equal(loaded.value_table, model.value_table)
    assert torch.equal(loaded.positions, model.positions)
    assert torch.equal(loaded(*batch).features, model(*batch).features)
    assert MaskGitScheduler.from_pretrained(tmp_path, subfolder="scheduler").config.num_inference_steps == 9


@torch.no_grad()
def test_attention_goes_through_the_dispatcher(model, batch, caplog):
    before = model(*batch).features
    with caplog.at_level(logging.ERROR):
        model.set_attention_backend("native")
    processors = model.attn_processors.values()
    assert {p._attention_backend for p in processors} == {AttentionBackendName.NATIVE}
    torch.testing.assert_close(model(*batch).features, before)
    with pytest.raises(ValueError, match="must be one of"):
        model.set_attention_backend("telepathy")
    model.reset_attention_backend()


@torch.no_grad()
def test_dropout_acts_while_training_only(model, batch):
    before = model.eval()(*batch).features
    for block in model.blocks:
        block.dropout = 0.5
    assert torch.equal(model(*batch).features, before)
    assert not torch.equal(model.train()(*batch).features, before)


def test_every_config_field_changes_the_model(model, tmp_path):
    """Except three that only tell what the model was trained on, and are read back as they are."""
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    other = dict(
        sides=[1, 4], codebook_size=33, latent_channels=4, num_classes=6, hidden_size=48, depth=3, num_heads=4,
        mlp_ratio=4.0, modulation_rank=5, class_labels=[1], class_names=["a"] * 5, tokenizer_fingerprint="ab",
        dropout=0.5,
    )  # fmt: skip
    assert other.keys() == config.keys()

    def seen(settings):
        m = MaskGitTransformer(**settings)
        shapes = {name: tuple(p.shape) for name, p in m.named_parameters()}
        block = m.blocks[0].attention.heads, m.blocks[0].dropout
        return shapes, m.layout, block, m.class_labels, m.class_names, m.tokenizer_fingerprint

    json.dumps(config)
    for field, value in other.items():
        assert seen(config | {field: value}) != seen(config), field


@pytest.mark.parametrize(
    "wrong",
    [
        dict(num_heads=0), dict(num_heads=3), dict(num_heads=2.0), dict(depth=10**6), dict(hidden_size=0),
        dict(depth=900, hidden_size=16_384), dict(hidden_size="32"), dict(sides=[1, 30_000]), dict(mlp_ratio=10.0**9),
        dict(codebook_size=10**12), dict(latent_channels=True), dict(num_classes=10**12), dict(mlp_ratio=float("nan")),
        dict(modulation_rank=-3), dict(class_labels=[5]), dict(class_labels="abc"), dict(class_names=[1]),
        dict(class_names=["a"] * 6), dict(tokenizer_fingerprint=["f"]), dict(dropout=-0.1),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_out_of_bounds_is_one_line(model, wrong, tmp_path):
    model.save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | wrong))
    for load in (
        lambda: MaskGitTransformer(**dict(model.config) | wrong),
        lambda: MaskGitTransformer.from_pretrained(tmp_path),
    ):
        with pytest.raises(CodaError) as error:
            load()
        assert "\n" not in str(error.value)


def test_a_value_table_of_another_codebook_is_refused(model):
    with pytest.raises(CodaError, match="value table"):
        model.set_value_table(torch.zeros(K, 4))


@torch.no_grad()
def test_codes_of_near_values_start_with_near_embeddings():
    model = make(trained=False)
    spread = model.code_embedding.weight.std()
    values = torch.randn(K, 3)
    values[1] = values[0]
    values[2] = -values[0]
    model.initialize_embedding(values)
    embedding = model.code_embedding.weight
    assert torch.equal(model.value_table, values)
    assert embedding.std() == pytest.approx(float(spread), rel=0.25)
    assert (embedding[0] - embedding[1]).norm() < 0.7 * (embedding[0] - embedding[2]).norm()


def test_gradient_checkpointing_changes_no_gradient(model, batch):
    def gradients():
        model.zero_grad()
        model(*batch).features.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.enable_gradient_checkpointing()
    model.train()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def _logits(model, labels, scale, codes, prefix, cells):
    return torch.cat(list(model.predictor(labels)(codes, prefix, 3, cells, scale)))


@torch.no_grad()
def test_guidance_mixes_logits(model):
    codes, prefix = torch.randint(0, K + 1, (2, 16)), torch.randn(2, 3, 4, 4)
    cells, labels = torch.tensor([[0, 5], [7, 2]]), [1, 3]
    with_class = _logits(model, labels, 1, codes, prefix, cells)
    without = _logits(model, [None, None], 1, codes, prefix, cells)
    mixed = _logits(model, labels, 2.5, codes, prefix, cells)
    assert with_class.shape == (4, K)
    torch.testing.assert_close(mixed, without + 2.5 * (with_class - without), atol=1e-4, rtol=1e-4)
    all_cells = model.logits(model(codes, [prefix], torch.tensor(labels), [3]).features)
    torch.testing.assert_close(with_class[:2], all_cells[0, [0, 5]])


def test_an_unknown_class_is_refused(model):
    with pytest.raises(CodaError, match="has 5 classes"):
        model.predictor([2, NONE])


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
def test_batch_size_and_order_change_no_sample(model, order):
    labels, seeds = [0, 3, None], (7, 8, 9)
    scheduler = MaskGitScheduler(num_inference_steps=8, order=order, guidance_scale=1.5)

    def sample(which):
        generators = [torch.Generator().manual_seed(seeds[i]) for i in which]
        predict = model.predictor([labels[i] for i in which])
        return scheduler.sample(predict, model.layout, model.value_table, generators)

    together = sample([0, 1, 2])
    assert torch.equal(sample([2, 0, 1]), together[[2, 0, 1]])
    for i in range(3):
        assert torch.equal(sample([i])[0], together[i])


def test_half_precision_samples(model):
    model.to(torch.bfloat16)
    generators = [torch.Generator().manual_seed(0)]
    codes = MaskGitScheduler().sample(model.predictor([1]), model.layout, model.value_table, generators)
    assert codes.max() < K
