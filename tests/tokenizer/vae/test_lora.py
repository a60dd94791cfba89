"""LoRA: on the published layers, without effect at first, exact when merged; the base weights do not change."""

from __future__ import annotations

import json

import pytest
import torch

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.official import tokenizer_from_official
from coda.tokenizer.vae.autoencoders import SPECS, from_config
from coda.tokenizer.vae.continuous_vae import ContinuousVAE
from coda.tokenizer.vae.lora import add_lora, lora_parameters, merge_lora
from coda.tokenizer.vae.published_formats import kl16_name


@pytest.fixture
def make_vae(small_autoencoder):
    def make(kind: str = "AutoencoderKL") -> ContinuousVAE:
        return ContinuousVAE(small_autoencoder(kind), image_range=SPECS[kind].image_range).eval()

    return make


def test_it_starts_without_effect_and_merges_exactly_on_every_kind(kind, make_vae, images):
    vae = make_vae(kind)
    with torch.no_grad():
        before = vae(images)
        names = add_lora(vae, 4)
        assert torch.equal(vae(images), before)
        assert any(name.startswith("decoder.") for name in names)
        assert any(name.startswith("encoder.") for name in names) or kind == "AutoencoderRAE"
        for parameter in lora_parameters(vae):
            parameter.normal_(0, 0.3)
        adapted = vae(images)
        assert not torch.allclose(adapted, before, atol=1e-2 * before.abs().max().item())
        merged = merge_lora(vae)(images)
    assert torch.allclose(merged, adapted, atol=2e-4 * adapted.abs().max().item())
    types = [{name: type(module) for name, module in model.named_modules()} for model in (vae, make_vae(kind))]
    assert types[0] == types[1]
    assert not any(p.requires_grad for p in vae.parameters())


def test_training_changes_the_lora_and_leaves_the_base_untouched_to_the_byte(make_vae, images):
    def base_bytes() -> dict[str, bytes]:
        state = vae.autoencoder.state_dict().items()
        return {name.replace(".base_layer.", "."): t.numpy().tobytes() for name, t in state if ".lora_" not in name}

    vae = make_vae()
    before = base_bytes()
    with torch.no_grad():
        expected = vae(images)
    add_lora(vae, 4)
    trainable = [p for p in vae.parameters() if p.requires_grad]
    assert {id(p) for p in lora_parameters(vae)} == {id(p) for p in trainable}
    optimizer = torch.optim.AdamW(trainable, lr=0.1)
    for _ in range(2):
        vae(images).square().mean().backward()
        optimizer.step()
    assert base_bytes() == before
    assert not torch.equal(vae(images), expected)


def test_it_adapts_the_layers_that_the_published_code_adapts(shared_reference):
    info = json.loads((shared_reference / "official-checkpoint" / "info.json").read_text())
    for name, sides in [("kl16", (1, 2, 3, 4)), ("flux", (1, 2, 3, 4, 6, 8))]:
        vae = tokenizer_from_official(shared_reference / "official-checkpoint" / name, sides).vae
        published = info[name]["lora_convs"]
        expected = {kl16_name(f"{conv}.").removesuffix(".") for conv in published} if name == "kl16" else set(published)
        assert set(add_lora(vae, 4)) == expected


def test_rank_32_on_kl16_has_the_published_number_of_parameters():
    with torch.device("meta"):
        autoencoder = from_config(
            {
                "_class_name": "AutoencoderKL",
                "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
                "up_block_types": ("UpDecoderBlock2D",) * 5,
                "block_out_channels": (128, 128, 256, 256, 512),
                "layers_per_block": 2,
                "latent_channels": 16,
            }
        )
        vae = ContinuousVAE(autoencoder)
        assert len(add_lora(vae, 32)) == 66
    assert sum(p.numel() for p in lora_parameters(vae)) == 6_021_120


def test_initial_values_are_published_ones_and_depend_on_the_seed_alone(make_vae):
    downs = []
    for seed in (1, 1, 2):
        vae = make_vae()
        torch.manual_seed(len(downs))  # must not matter
        before = torch.get_rng_state()
        add_lora(vae, 8, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights = lora_parameters(vae)  # down, up, down, up, …
        assert not any(up.any() for up in weights[1::2])
        downs.append(torch.cat([down.flatten() for down in weights[::2]]))
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])
    assert downs[0].std().item() == pytest.approx(1 / 8, rel=0.05)


def test_a_second_lora_rank_0_and_saving_before_merging_are_refused(make_vae, tmp_path):
    vae = make_vae()
    with pytest.raises(CodaError, match="rank 0"):
        add_lora(vae, 0)
    add_lora(vae, 2)
    with pytest.raises(CodaError, match="already"):
        add_lora(vae, 2)
    with pytest.raises(CodaError, match="merge_lora"):
        vae.save_pretrained(tmp_path)
    merge_lora(vae).save_pretrained(tmp_path)
    assert add_lora(vae, 2)
