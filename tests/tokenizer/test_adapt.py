import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from coda.tokenizer import CodaError, CodaTokenizer, ContinuousVAE
from coda.tokenizer.adapt import adapt
from coda.tokenizer.images import image_batches, open_images, to_unit
from coda.tokenizer.settings import AdaptSettings, RunOptions
from coda.tokenizer.vae.continuous_vae import measure_normalization
from coda.tokenizer.vae.load import load_vae

CPU = RunOptions(device="cpu")
SMALL = dict(
    codebook_size=32, lora_rank=2, steps=3, batch_size=4, warmup=1, perceptual_weight=0.0, validation_share=0.0
)


def small(**changed):
    return AdaptSettings(**(SMALL | changed))


@pytest.fixture(scope="module")
def images(ramps):
    (batch,) = image_batches(ramps(), 8, 24)
    return to_unit(batch.pixels)


@pytest.fixture(scope="module")
def vae(images, small_autoencoder):
    torch.manual_seed(0)
    return measure_normalization(ContinuousVAE(small_autoencoder()), [images])


@pytest.fixture(scope="module")
def plain(tmp_path_factory, vae, ramps):
    """A tokenizer made with the small settings."""
    return adapt(vae, ramps(), tmp_path_factory.mktemp("plain") / "tokenizer", small(), CPU)


def fingerprint(folder):
    return json.loads((folder / "coda_tokenizer.json").read_text())["fingerprint"]


def test_the_result_is_a_tokenizer(plain, images):
    tokenizer = CodaTokenizer.from_pretrained(plain)
    assert tokenizer.size == (8, 8)
    assert tokenizer.layout.codebook_size == 32 and tokenizer.layout.grid == (4, 4)
    assert tokenizer.encode(images).shape == (24, tokenizer.layout.num_tokens)
    assert not any("lora" in name for name in tokenizer.vae.state_dict())
    config = json.loads((plain / "lora" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 2
    assert not (plain / "checkpoints").exists()


def test_the_saved_adapter_is_the_merged_one_and_the_vae_is_not_changed(tmp_path, vae, ramps):
    base = {name: tensor.clone() for name, tensor in vae.autoencoder.state_dict().items()}
    path = adapt(vae, ramps(), tmp_path / "tokenizer", small(lr=1e-2), CPU)
    after = vae.autoencoder.state_dict()
    assert base.keys() == after.keys() and all(torch.equal(base[name], after[name]) for name in base)
    adapter = load_file(path / "lora" / "adapter_model.safetensors")
    merged = CodaTokenizer.from_pretrained(path).vae.autoencoder.state_dict()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    adapted = {name.removesuffix(".lora_A.weight") + ".weight" for name in adapter if name.endswith("lora_A.weight")}
    assert changed and changed <= adapted
    for name in changed:
        layer = name.removesuffix(".weight")
        down, up = adapter[f"{layer}.lora_A.weight"], adapter[f"{layer}.lora_B.weight"]
        product = torch.einsum("or,rikl->oikl", up.flatten(1), down)
        torch.testing.assert_close(merged[name], base[name] + product, atol=1e-6, rtol=1e-5)


def test_zero_steps_keep_the_kmeans_initialization_and_training_improves_on_it(tmp_path, vae, images, ramps):
    untrained, trained = (
        CodaTokenizer.from_pretrained(
            adapt(vae, ramps(), tmp_path / str(steps), small(steps=steps, lr=1e-2, lora_rank=8), CPU)
        )
        for steps in (0, 30)
    )
    assert all(torch.equal(vae.state_dict()[n], tensor) for n, tensor in untrained.vae.state_dict().items())
    latents = vae.encode(images)
    left = (untrained.quantizer.decode(untrained.encode(images)) - latents).square().mean()
    assert left < 0.3 * latents.var()
    assert untrained.encode(images).unique().numel() > 24
    errors = [float((tokenizer(images) - images).abs().mean()) for tokenizer in (untrained, trained)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize(
    "changed",
    [
        dict(adversarial_weight=0.1, adversarial_start=1),
        dict(adversarial_weight=0.1, adversarial_ramp=1.0, discriminator="projected", accumulation=2),
    ],
    ids=["patch", "accumulated"],
)
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, vae, ramps, content, changed):
    settings = small(steps=6, **changed)
    run = RunOptions(device="cpu", checkpoint_every=2)
    whole = adapt(vae, ramps(), tmp_path / "whole", settings, run)
    before = 1 + 24  # the first image for the default size, then all for k-means
    with pytest.raises(KeyboardInterrupt):
        adapt(vae, ramps(interrupt_at=before + 4 * 3 + 2), tmp_path / "parts", settings, run)
    assert (tmp_path / "parts" / "checkpoints" / "step-00000002").is_dir()
    again = ramps()
    parts = adapt(vae, again, tmp_path / "parts", settings, run)
    assert again.reads == 1 + 4 * 4  # no second k-means
    assert content(parts) == content(whole)


def test_an_unnormalized_vae_is_measured_once(tmp_path, images, ramps, small_autoencoder):
    tiny = ContinuousVAE(small_autoencoder("AutoencoderTiny"))
    assert tiny.is_unnormalized
    with pytest.raises(KeyboardInterrupt):
        adapt(tiny, ramps(interrupt_at=1 + 2 * 24 + 3), tmp_path / "tokenizer", small(steps=1), CPU)
    path = adapt(tiny, ramps(), tmp_path / "tokenizer", small(steps=1), CPU)
    tokenizer = CodaTokenizer.from_pretrained(path)
    assert not tokenizer.vae.is_unnormalized
    expected = measure_normalization(tiny, [images]).config["scale"]
    assert tokenizer.vae.config["scale"] == pytest.approx(expected, rel=1e-5)


def test_the_discriminators_step_uses_its_own_gradients_only(tmp_path, vae, ramps):
    """With the adversarial loss weighted 1 or 1000, one step gives another tokenizer, but the same discriminator."""
    discriminators, run = [], RunOptions(device="cpu", checkpoint_every=1)
    for weight in (1.0, 1000.0):
        out, source = tmp_path / str(weight), ramps(interrupt_at=1 + 24 + 4 + 1)  # in the second step's batch
        with pytest.raises(KeyboardInterrupt):
            adapt(vae, source, out, small(adversarial_weight=weight), run)
        tensors = load_file(out / "checkpoints" / "step-00000001" / "tensors.safetensors")
        discriminators.append({name: t for name, t in tensors.items() if name.startswith("discriminator.weight")})
    assert discriminators[0]
    assert all(torch.equal(discriminators[0][name], tensor) for name, tensor in discriminators[1].items())


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, vae, ramps):
    """Of losses that are means over images: the batch entropy and the adaptive weight are taken part by part."""
    gradients = []
    for parts in (1, 2, 4):
        out, source = tmp_path / str(parts), ramps(interrupt_at=1 + 24 + 4 + 1)  # in the second step's batch
        with pytest.raises(KeyboardInterrupt):
            settings = small(accumulation=parts, entropy_weight=0.0)
            adapt(vae, source, out, settings, RunOptions(device="cpu", checkpoint_every=1))
        tensors = load_file(out / "checkpoints" / "step-00000001" / "tensors.safetensors")
        gradients.append({name: t for name, t in tensors.items() if ".exp_avg." in name})
    assert gradients[0]
    for other in gradients[1:]:
        for name, tensor in gradients[0].items():
            # Right after k-means, retrieval is so sharp that it magnifies float32's rounding.
            assert (other[name] - tensor).norm() <= 1e-2 * tensor.norm(), name


def test_checkpointed_activations_give_the_same_tokenizer(tmp_path, vae, ramps, plain):
    path = adapt(vae, ramps(), tmp_path / "tokenizer", small(gradient_checkpointing=True), CPU)
    assert fingerprint(path) == fingerprint(plain)


def test_in_bfloat16_the_trained_weights_stay_float32(tmp_path, vae, ramps):
    run = RunOptions(device="cpu", dtype="bfloat16", checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        adapt(vae, ramps(interrupt_at=1 + 24 + 4 + 1), tmp_path, small(), run)
    tensors = load_file(tmp_path / "checkpoints" / "step-00000001" / "tensors.safetensors")
    assert {t.dtype for name, t in tensors.items() if name != "monitor.counts"} == {torch.float32}


def test_weighing_by_the_decoder_gives_better_images_at_the_start(tmp_path, shared_data):
    data = open_images(shared_data / "tiny-imagenet" / "train-00000.parquet")
    (batch,) = image_batches(data, 32, 16, range(1000, 1016))
    images, psnr = to_unit(batch.pixels), {}
    taef2 = load_vae(shared_data / "taef2")
    taef2.register_to_config(shift=[0.0], scale=[1.0])  # nothing to measure
    for metric in ("latent", "decoder"):
        settings = small(size=32, codebook_size=64, kmeans_images=64, steps=0, kmeans_metric=metric)
        made = adapt(taef2, data, tmp_path / metric, settings, CPU)
        error = (CodaTokenizer.from_pretrained(made)(images) - images).square().mean()
        psnr[metric] = 10 * math.log10(4 / float(error))
    assert psnr["decoder"] > psnr["latent"] + 0.5


def test_images_that_are_not_square(tmp_path, vae, ramps):
    tokenizer = CodaTokenizer.from_pretrained(adapt(vae, ramps(), tmp_path / "t", small(size=(4, 8), steps=1), CPU))
    assert tokenizer.size == (4, 8) and tokenizer.layout.grid == (2, 4)


@pytest.mark.parametrize(
    "changed",
    [
        dict(l1_weight=0.0), dict(l2_weight=0.0), dict(perceptual_weight=1.0), dict(entropy_weight=5.0),
        dict(adversarial_weight=1.0), dict(adversarial_weight=1.0, adversarial_start=2), dict(ema_decay=0.0),
        dict(adversarial_weight=1.0, adversarial_ramp=1.0), dict(adversarial_weight=1.0, discriminator="projected"),
        dict(accumulation=2), dict(max_gradient_norm=1e-3), dict(weight_decay=0.1),
        dict(seed=1), dict(lr=1e-2), dict(warmup=0), dict(kmeans_images=12), dict(attention_dim=12),
        dict(norm="layer_norm"), dict(lora_rank=0), dict(sides=(1, 4)), dict(kmeans_metric="latent"),
        dict(quantizer_steps=2), dict(decoder_steps=2), dict(perturbed_codes=0.5),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_setting_does_something(tmp_path, vae, ramps, plain, changed):
    tried = [small(**changed)]
    if "adversarial_start" in changed:
        tried.append(small(**(changed | {"adversarial_start": 0})))
    found = {fingerprint(adapt(vae, ramps(), tmp_path / str(i), each, CPU)) for i, each in enumerate(tried)}
    assert len({fingerprint(plain), *found}) == 1 + len(tried)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(size=9), "size 9x9 is not a multiple of the VAE's factor, 2"),
        (dict(sides=(1, 2, 3)), r"the last side is \(3, 3\), the latent's grid at 8x8 pixels is \(4, 4\)"),
        (dict(attention_dim=4), "attention width of 5 at least"),
        (dict(accumulation=3), "a batch of 4 cannot be accumulated in 3 equal parts"),
        (dict(codebook_size=4096), "24 images give .* vectors for 4096 codes"),
        (dict(lr=1e20, warmup=0), "diverged; a lower lr"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(tmp_path, vae, ramps, wrong, message):
    with pytest.raises(CodaError, match=message):
        adapt(vae, ramps(), tmp_path / "tokenizer", small(**wrong), CPU)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("encoder.conv_in.weight", float("nan"), "NaN or infinite values in .*encoder.conv_in.weight"),
        ("decoder.conv_out.bias", float("inf"), "NaN or infinite values in .*decoder.conv_out.bias"),
        ("quant_conv.bias", 3e38, "latents are NaN or infinite"),
    ],
)
def test_a_vae_that_is_not_finite_is_refused(tmp_path, vae, ramps, steps, where, value, message):
    autoencoder = copy.deepcopy(vae.autoencoder)
    autoencoder.get_parameter(where).data.view(-1)[0] = value
    damaged = ContinuousVAE(autoencoder, [0.0], [10.0])
    with pytest.raises(CodaError, match=message):
        adapt(damaged, ramps(), tmp_path / "tokenizer", small(steps=steps), CPU)
