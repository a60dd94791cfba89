"""LoRA: on the published layers, nothing at first, gone without a trace when it is off, exact when merged."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.official import tokenizer_from_official
from coda.tokenizer.vae.autoencoders import SPECS, from_config
from coda.tokenizer.vae.continuous_vae import ContinuousVAE
from coda.tokenizer.vae.lora import add_lora, load_lora_state, lora_disabled, lora_parameters, lora_state, merge_lora
from coda.tokenizer.vae.published_formats import kl16_name


def make_vae(small_autoencoder, kind: str = "AutoencoderKL") -> ContinuousVAE:
    return ContinuousVAE(small_autoencoder(kind), image_range=SPECS[kind].image_range).eval()


def trained(vae: ContinuousVAE, size: float = 0.05) -> ContinuousVAE:
    """As after some steps: `up` is no longer zero."""
    with torch.no_grad():
        for parameter in lora_parameters(vae):
            parameter.normal_(0, size)
    return vae


def base_bytes(vae: ContinuousVAE) -> dict[str, bytes]:
    """Weights of the autoencoder under the names they have without LoRA."""
    return {
        name.replace(".base_layer.", "."): tensor.numpy().tobytes()
        for name, tensor in vae.autoencoder.state_dict().items()
        if ".lora_" not in name
    }


def test_it_starts_as_nothing_on_every_kind(kind, small_autoencoder, images):
    vae = make_vae(small_autoencoder, kind)
    with torch.no_grad():
        before = vae(images)
        names = add_lora(vae, 4)
        assert torch.equal(vae(images), before)
    assert any(name.startswith("decoder.") for name in names)
    assert any(name.startswith("encoder.") for name in names) or kind == "AutoencoderRAE"


def test_merged_it_computes_the_same_on_every_kind(kind, small_autoencoder, images):
    vae = make_vae(small_autoencoder, kind)
    with torch.no_grad():
        before = vae(images)
        add_lora(vae, 4)
        adapted = trained(vae, 0.3)(images)
        assert not torch.allclose(adapted, before, atol=1e-2 * before.abs().max().item())
        merged = merge_lora(vae)(images)
    assert torch.allclose(merged, adapted, atol=2e-4 * adapted.abs().max().item())
    assert describe_types(vae) == describe_types(make_vae(small_autoencoder, kind))


def describe_types(vae: ContinuousVAE) -> dict[str, type]:
    return {name: type(module) for name, module in vae.autoencoder.named_modules()}


def test_switched_off_the_base_is_untouched_to_the_byte(small_autoencoder, images):
    vae = make_vae(small_autoencoder)
    before = base_bytes(vae)
    with torch.no_grad():
        expected = vae(images)
    add_lora(vae, 4)
    optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        vae(images).square().mean().backward()
        optimizer.step()
    assert base_bytes(vae) == before
    with torch.no_grad(), lora_disabled(vae):
        assert torch.equal(vae(images), expected)
    assert not torch.equal(vae(images), expected)
    assert all(p.requires_grad for p in lora_parameters(vae))


def test_only_the_lora_is_trainable(small_autoencoder):
    vae = make_vae(small_autoencoder)
    add_lora(vae, 4)
    own = {id(p) for p in lora_parameters(vae)}
    assert own == {id(p) for p in vae.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in merge_lora(vae).parameters())


def test_it_lands_where_the_published_code_puts_it(shared_reference):
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
        add_lora(vae, 32)
    assert sum(p.numel() for p in lora_parameters(vae)) == 6_021_120


def test_initial_values_are_those_of_the_published_code(small_autoencoder):
    vae = make_vae(small_autoencoder)
    add_lora(vae, 8)
    down = torch.cat([t.flatten() for n, t in lora_state(vae).items() if n.endswith(".down.weight")])
    assert down.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert not any(t.any() for n, t in lora_state(vae).items() if n.endswith(".up.weight"))


def test_the_seed_alone_decides_the_initial_values(small_autoencoder):
    states = []
    for seed in (1, 1, 2):
        vae = make_vae(small_autoencoder)
        torch.manual_seed(len(states))  # must not matter
        before = torch.get_rng_state()
        add_lora(vae, 2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(torch.cat([t.flatten() for t in lora_state(vae).values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_its_state_goes_from_one_vae_to_another(small_autoencoder, images):
    one = make_vae(small_autoencoder)
    other = ContinuousVAE(from_config({**one.config.architecture}))
    other.load_state_dict(one.state_dict())
    add_lora(one, 4)
    add_lora(other, 4, seed=1)
    load_lora_state(other, lora_state(trained(one)))
    assert torch.allclose(one(images), other(images), atol=1e-5)
    partial = dict(list(lora_state(one).items())[1:])
    with pytest.raises(CodaError, match=r"down.weight missing"):
        load_lora_state(other, partial)


def test_what_makes_no_sense_is_refused(small_autoencoder, tmp_path):
    vae = make_vae(small_autoencoder)
    with pytest.raises(CodaError, match="rank 0"):
        add_lora(vae, 0)
    add_lora(vae, 2)
    with pytest.raises(CodaError, match="already"):
        add_lora(vae, 2)
    with pytest.raises(CodaError, match="merge_lora"):
        vae.save_pretrained(tmp_path)
    merge_lora(vae)
    vae.save_pretrained(tmp_path)
    assert add_lora(vae, 2)
    assert isinstance(vae.autoencoder, nn.Module)
