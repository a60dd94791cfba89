import fcntl
import json
import os

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file

from coda.tokenizer import CodaError, load_vae
from coda.tokenizer.images import image_batches, to_unit
from coda.tokenizer.settings import RunOptions, VaeSettings
from coda.tokenizer.train_vae import train_vae

CPU = RunOptions(device="cpu")
SMALL = dict(
    size=16, factor=4, latent_channels=4, width=16, steps=3, batch_size=4, warmup=2, perceptual_weight=0.0,
    validation_share=0.0,
)  # fmt: skip
NEW = {"factor", "latent_channels", "width"}


def small(**changed):
    return VaeSettings(**(SMALL | changed))


@pytest.fixture(scope="module")
def source(ramps):
    """Makes sources of twelve images."""
    return lambda interrupt_at=None: ramps(12, 16, interrupt_at)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, source):
    """A VAE made with the small settings."""
    return train_vae(source(), tmp_path_factory.mktemp("plain") / "vae", small(), CPU)


def further(**changed):
    """The small settings without those of a new VAE."""
    return VaeSettings(**({name: SMALL[name] for name in SMALL.keys() - NEW} | changed))


def weights(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("architecture", ["patch", "kl", "tiny"])
def test_load_vae_reads_the_result(tmp_path, source, architecture):
    path = train_vae(source(), tmp_path / "vae", small(architecture=architecture, steps=40, lr=5e-3), CPU)
    vae = load_vae(path)
    assert (vae.factor, vae.latent_channels, vae.is_unnormalized) == (4, 4, False)
    (batch,) = image_batches(source(), 16, 12)
    latents = vae.encode(to_unit(batch.pixels))
    assert latents.shape == (12, 4, 4, 4)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.var(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)
    losses = [json.loads(line)["l1"] for line in (path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert not (path / "checkpoints").exists()


@pytest.mark.parametrize(("architecture", "start_images"), [("patch", 12), ("kl", 0)])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, source, content, architecture, start_images):
    settings = small(architecture=architecture, steps=7, perceptual_weight=0.1)
    run = RunOptions(device="cpu", checkpoint_every=3)
    whole = train_vae(source(), tmp_path / "whole", settings, run)
    with pytest.raises(KeyboardInterrupt):
        fifth_step = source(interrupt_at=start_images + 4 * 5)
        train_vae(fifth_step, tmp_path / "parts", settings, run)
    assert (tmp_path / "parts" / "checkpoints" / "step-00000003").is_dir()
    again = source()
    parts = train_vae(again, tmp_path / "parts", settings, run)
    assert again.reads == 4 * 4 + 12  # steps 3 to 6, and the images that the latents are measured on
    assert content(parts) == content(whole)


def test_a_resumed_run_from_a_vae_ends_with_the_same_bytes(tmp_path, source, content, plain):
    run = RunOptions(device="cpu", checkpoint_every=1)
    whole = train_vae(source(), tmp_path / "whole", further(), run, vae=plain)
    with pytest.raises(KeyboardInterrupt):
        train_vae(source(interrupt_at=2 * 4), tmp_path / "parts", further(), run, vae=plain)
    assert content(train_vae(source(), tmp_path / "parts", further(), run, vae=load_vae(plain))) == content(whole)


def test_training_goes_on_from_a_vae(tmp_path, source, plain, small_vae):
    """A tiny learning rate leaves it as it is, whatever its architecture; its normalization is measured again."""
    settings = further(steps=1, lr=1e-9, warmup=0)
    same = weights(train_vae(source(), tmp_path / "same", settings, CPU, vae=plain))
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(same[name], tensor, atol=1e-6, rtol=0)
    small_vae.register_to_config(image_range="0,1")
    before = {name: tensor.clone() for name, tensor in small_vae.state_dict().items()}
    other = load_vae(train_vae(source(), tmp_path / "other", settings, CPU, vae=small_vae))
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)
    assert (other.config["image_range"], other.is_unnormalized) == ("0,1", False)
    assert other.config["scale"] != small_vae.config["scale"]
    train_vae(source(), tmp_path / "larger", further(lr=1e-2, warmup=0), CPU, vae=small_vae)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_vae.state_dict().items())  # a copy learned


def test_a_vae_to_start_from_is_checked(tmp_path, source, plain):
    with pytest.raises(CodaError, match="width is for a new VAE; the one to start from has its own"):
        train_vae(source(), tmp_path / "vae", further(width=32), CPU, vae=plain)
    with pytest.raises(CodaError, match="size 18 is not a multiple of the factor, 4"):
        train_vae(source(), tmp_path / "vae", further(size=18), CPU, vae=plain)
    damaged = load_vae(plain)
    next(damaged.parameters()).fill_(torch.nan)
    with pytest.raises(CodaError, match="the VAE is damaged: NaN or infinite values"):
        train_vae(source(), tmp_path / "vae", further(), CPU, vae=damaged)
    assert not (tmp_path / "vae").exists()


def test_the_default_starts_as_principal_components(tmp_path, source):
    """Before the first step the error is what the components leave: less than one step from random weights leaves."""
    first = {}
    for architecture in ("patch", "kl"):
        path = train_vae(source(), tmp_path / architecture, small(architecture=architecture, steps=1), CPU)
        first[architecture] = json.loads((path / "log.jsonl").read_text())["psnr"]
    assert first["patch"] > first["kl"] + 10


def test_a_finished_run_is_not_repeated(plain, source):
    again = source()
    train_vae(again, plain, small(), CPU)
    assert again.reads == 0
    with pytest.raises(CodaError, match=r"kl_weight 0\.0001 there, 0\.5 asked"):
        train_vae(again, plain, small(kl_weight=0.5), CPU)


def test_a_running_training_keeps_others_out_of_its_directory(tmp_path, ramps):
    class Trying(ramps):
        """Tries at every read to take the directory, as a second training would."""

        def read(self, i):
            with pytest.raises(BlockingIOError):
                fcntl.flock(os.open(tmp_path / "vae", os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return super().read(i)

    path = train_vae(Trying(12, 16), tmp_path / "vae", small(steps=1), CPU)
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "changed",
    [
        dict(kl_weight=1.0), dict(l1_weight=0.0), dict(l2_weight=0.0), dict(perceptual_weight=1.0),
        dict(ema_decay=0.0), dict(seed=1), dict(lr=1e-2), dict(warmup=0),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_setting_does_something(tmp_path, source, plain, changed):
    other = weights(train_vae(source(), tmp_path / "other", small(**changed), CPU))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in weights(plain).items())


def test_residual_blocks_are_one_per_size_or_as_many_as_given(tmp_path, source, plain):
    deeper = train_vae(source(), tmp_path / "vae", small(layers_per_block=(1, 3)), CPU)
    counts = [sum(isinstance(m, ResnetBlock2D) for m in load_vae(path).modules()) for path in (plain, deeper)]
    assert counts == [2 * (1 + 1), 2 * (1 + 3)]  # in encoder and decoder


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(factor=6), "factor 6 is not a power of two"),
        (dict(size=18), "size 18 is not a multiple of the factor, 4"),
        (dict(architecture="kl", width=10), "width 10 is not a multiple of 4"),
        (dict(width=12), "a width of 12 is not a multiple of 16"),
        (dict(layers_per_block=(1, 2, 2)), "layers_per_block 1,2,2: expected 2 numbers, one per halving of the size"),
        (dict(architecture="kl", layers_per_block=(1, 2)), "layers_per_block is for the architecture patch"),
        (dict(latent_channels=49), "latent_channels 49: expected 1 to the 48 values of a patch"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(tmp_path, source, wrong, message):
    with pytest.raises(CodaError, match=message):
        train_vae(source(), tmp_path / "vae", small(**wrong), CPU)
    assert not (tmp_path / "vae").exists()
