"""The phases of `adapt` before the joint one: killed anywhere, resumed to the byte; what each of them changes."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from coda.tokenizer import CodaTokenizer, ContinuousVAE
from coda.tokenizer.adapt import adapt
from coda.tokenizer.foundation.reading import read_json
from coda.tokenizer.settings import AdaptSettings, RunOptions

from ..conftest import start_and_kill

RUN = RunOptions(device="cpu", checkpoint_every=2)


def small(**changed):
    usual = dict(
        codebook_size=32,
        lora_rank=2,
        steps=0,
        batch_size=4,
        warmup=1,
        perceptual_weight=0.0,
        lr=1e-2,
        validation_share=0.0,
    )
    return AdaptSettings(**(usual | changed))


@pytest.fixture
def vae(small_autoencoder):
    torch.manual_seed(0)
    return ContinuousVAE(small_autoencoder(), [0.1], [0.4]).requires_grad_(False).eval()


def test_killed_in_any_phase_it_ends_with_the_same_bytes(tmp_path, vae, ramps, content):
    settings = small(quantizer_steps=4, decoder_steps=4, steps=4, perturbed_codes=0.2)
    whole = adapt(vae, ramps(), tmp_path / "whole", settings, RUN)
    parts, reached = tmp_path / "parts", []
    for killed_at in (70, 70, 70, None):
        child = start_and_kill(lambda: adapt(vae, ramps(), parts, settings, RUN), parts, killed_at)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if killed_at is None else -9)
        reached += [read_json(path)["step"] for path in parts.glob("checkpoints/step-*/state.json")]
    assert min(reached) < 4 and {4, 5, 6, 7} & {*reached} and max(reached) >= 8
    assert content(parts) == content(whole)


def test_each_phase_changes_its_own_part(tmp_path, vae, ramps):
    weights = {}
    for name in ("kmeans", "quantizer_steps", "decoder_steps"):
        made = adapt(vae, ramps(), tmp_path / name, small(**({} if name == "kmeans" else {name: 2})), RUN)
        tokenizer = CodaTokenizer.from_pretrained(made)
        weights[name] = {
            "encoder": tokenizer.vae.autoencoder.encoder.state_dict(),
            "decoder": tokenizer.vae.autoencoder.decoder.state_dict(),
            "quantizer": tokenizer.quantizer.state_dict(),
        }

    def changed(name):
        return {
            part
            for part, before in weights["kmeans"].items()
            if any(not torch.equal(before[key], tensor) for key, tensor in weights[name][part].items())
        }

    assert changed("quantizer_steps") == {"quantizer"}
    assert changed("decoder_steps") == {"quantizer", "decoder"}


def test_every_image_is_encoded_once_and_the_quantizers_phase_reads_none(tmp_path, vae, ramps):
    source = ramps()
    adapt(vae, source, tmp_path / "t", small(size=8, quantizer_steps=20), RUN)
    assert source.reads == 24 + 24  # for k-means, and for the cache
    source = ramps()
    adapt(vae, source, tmp_path / "few", small(size=8, quantizer_steps=20, cached_images=6), RUN)
    assert source.reads == 24 + 6


def test_training_the_quantizer_alone_lowers_the_error_of_the_latents(tmp_path, vae, ramps):
    adapt(vae, ramps(), tmp_path / "t", small(quantizer_steps=60, entropy_weight=0.0), RUN)
    log = [json.loads(line) for line in (tmp_path / "t" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["latent_error"] < 0.9 * log[0]["latent_error"]


def test_latents_belong_to_their_images(tmp_path, vae, ramps):
    """With codes enough for every vector, only the decoder's own error is left, unless crops or mirroring differ."""
    out = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        adapt(vae, ramps(interrupt_at=1 + 24 + 8 + 6), out, small(decoder_steps=2), RUN)
    assert load_file(out / "checkpoints" / "latents.safetensors")["latents"].shape == (8, 4, 4, 4)
