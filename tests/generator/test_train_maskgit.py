"""Training from a cache alone."""

import json
import subprocess
import sys

import pytest
import torch

from coda.generator import MaskGitScheduler, MaskGitTransformer, train_maskgit
from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.foundation.errors import CodaError

QUICK = dict(preset="pocket", hidden_size=16, depth=1, num_heads=2, steps=6, batch_size=8, device="cpu")


def weights(path):
    return (path / "diffusion_pytorch_model.safetensors").read_bytes()


class DyingCache(CodeCache):
    """A cache whose machine loses power at a given read."""

    def __init__(self, path, reads):
        super().__init__(path)
        self.reads = reads

    def batch(self, indices):
        self.reads -= 1
        if self.reads < 0:
            raise KeyboardInterrupt
        return super().batch(indices)


def test_it_learns_what_a_class_looks_like_and_samples_it(make_cache, prototypes, tmp_path):
    out = train_maskgit(
        make_cache(), tmp_path / "out", "pocket", steps=120, batch_size=48, lr=4e-3, ema_decay=0.95, device="cpu"
    )
    model = MaskGitTransformer.from_pretrained(out)
    scheduler = MaskGitScheduler.from_pretrained(out, subfolder="scheduler")
    labels = torch.arange(3).repeat_interleave(8)
    generators = [torch.Generator().manual_seed(seed) for seed in range(24)]
    codes = scheduler.sample(model.predictor(labels), model.layout, model.value_table, generators)
    agreement = (codes[:, None] == prototypes[None]).float().mean(dim=2)  # (24, classes)
    assert (agreement.argmax(dim=1) == labels).all()
    assert agreement.gather(1, labels[:, None]).mean() > 0.85
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]


def test_a_cache_of_another_tokenizer_is_refused_with_both_names(make_cache, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    with pytest.raises(CodaError, match="holds no tokenizer"):
        train_maskgit(make_cache(), tmp_path / "out", tokenizer=tokenizer, **QUICK)
    tokenizer.mkdir()
    for other, refused in (("e" * 64, True), ("f" * 64, False)):
        (tokenizer / "coda_tokenizer.json").write_text(json.dumps({"fingerprint": other}))
        if refused:
            with pytest.raises(CodaError, match=f"codes of the tokenizer {'f' * 64}, not of .*, which is {other}"):
                train_maskgit(tmp_path / "cache", tmp_path / "out", tokenizer=tokenizer, **QUICK)
            assert not (tmp_path / "out").exists()
        else:
            train_maskgit(tmp_path / "cache", tmp_path / "out", tokenizer=tokenizer, **QUICK)


def test_the_directory_says_what_it_was_trained_on(make_cache, tmp_path):
    cache = CodeCache(make_cache())
    out = train_maskgit(cache, tmp_path / "out", mask_law="arccos", **QUICK)
    model = MaskGitTransformer.from_pretrained(out)
    assert model.layout == cache.layout
    assert torch.equal(model.value_table, cache.value_table)
    assert model.class_labels == (0, 1, 2)
    assert model.class_names == ("ant", "bee", "cat", "dog", "eel")
    assert model.tokenizer_fingerprint == "f" * 64
    assert MaskGitScheduler.from_pretrained(out, subfolder="scheduler").config.mask_schedule == "arccos"
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("reads", [1, 3, 4])
def test_an_interrupted_training_ends_with_the_same_bytes(make_cache, tmp_path, reads):
    cache = make_cache()
    whole = train_maskgit(cache, tmp_path / "whole", checkpoint_every=2, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train_maskgit(DyingCache(cache, reads), tmp_path / "cut", checkpoint_every=2, **QUICK)
    cut = train_maskgit(cache, tmp_path / "cut", checkpoint_every=2, **QUICK)
    assert weights(cut) == weights(whole)
    assert (cut / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()


def test_neither_workers_nor_checkpoints_change_anything(make_cache, tmp_path):
    cache = make_cache()
    one = train_maskgit(cache, tmp_path / "one", checkpoint_every=100, **QUICK)
    two = train_maskgit(cache, tmp_path / "two", checkpoint_every=1, workers=1, **QUICK)
    assert weights(one) == weights(two)


def test_a_finished_training_is_not_repeated_and_another_is_refused(make_cache, tmp_path):
    cache, out = make_cache(), tmp_path / "out"
    train_maskgit(cache, out, **QUICK)
    before = (out / "config.json").stat().st_mtime_ns
    train_maskgit(DyingCache(cache, 0), out, **QUICK)
    assert (out / "config.json").stat().st_mtime_ns == before
    with pytest.raises(CodaError, match="lr"):
        train_maskgit(cache, out, lr=1e-3, **QUICK)
    train_maskgit(cache, out, lr=1e-3, overwrite=True, **QUICK)


def test_codes_of_another_tokenizer_are_refused_and_both_are_named(make_cache, tmp_path):
    train_maskgit(make_cache(), tmp_path / "out", **QUICK)
    with pytest.raises(CodaError, match=f"tokenizer '{'f' * 64}' there, '{'e' * 64}' asked"):
        train_maskgit(make_cache("other", tokenizer="e"), tmp_path / "out", **QUICK)


@pytest.mark.parametrize(
    "changed",
    [
        dict(lr=1e-2), dict(lr_decay="constant"), dict(warmup=5), dict(class_dropout=0.9), dict(corruption=0.9),
        dict(mask_law="linear"), dict(ema_decay=0.0), dict(seed=1), dict(dtype="bfloat16"), dict(batch_size=9),
        dict(depth=2), dict(num_heads=4), dict(hidden_size=32), dict(steps=5),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_does_something(make_cache, tmp_path, changed):
    cache = make_cache()
    plain = train_maskgit(cache, tmp_path / "plain", **QUICK)
    other = train_maskgit(cache, tmp_path / "other", **(QUICK | changed))
    assert weights(plain) != weights(other)


def test_gradient_checkpointing_only_saves_memory(make_cache, tmp_path):
    cache = make_cache()
    plain = train_maskgit(cache, tmp_path / "plain", **QUICK)
    saving = train_maskgit(cache, tmp_path / "saving", gradient_checkpointing=True, **QUICK)
    a, b = (MaskGitTransformer.from_pretrained(path).state_dict() for path in (plain, saving))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], msg=name)


def test_pictures_without_labels_train_a_generator_of_no_class(make_cache, tmp_path):
    out = train_maskgit(make_cache(labelled=False), tmp_path / "out", **QUICK)
    model = MaskGitTransformer.from_pretrained(out)
    assert model.class_labels == ()
    generators = [torch.Generator().manual_seed(0)]
    codes = MaskGitScheduler().sample(model.predictor(torch.tensor([0])), model.layout, model.value_table, generators)
    assert codes.shape == (1, model.layout.num_tokens)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(preset="giant"), "giant"), (dict(corruption=1.5), "corruption"), (dict(mask_law="sine"), "sine"),
        (dict(lr_decay="step"), "step"), (dict(steps=0), "steps"), (dict(dtype="int8"), "int8"),
        (dict(device="abacus"), "abacus"), (dict(checkpoint_every=0), "checkpoint_every"), (dict(num_heads=5), "heads"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_written(make_cache, tmp_path, wrong, said):
    with pytest.raises(CodaError, match=said):
        train_maskgit(make_cache(), tmp_path / "out", **(QUICK | wrong))
    assert not (tmp_path / "out").exists()


def test_a_diverged_training_says_so(make_cache, tmp_path):
    with pytest.raises(CodaError, match="diverged"):
        train_maskgit(make_cache(), tmp_path / "out", lr=float("inf"), **QUICK)


def test_no_vae_is_ever_made(make_cache, tmp_path):
    """Every autoencoder has a convolution: making one at all ends the training."""
    cache = make_cache()
    code = f"""
import torch
def forbidden(self, *args, **kwargs):
    raise RuntimeError("a VAE is being made")
torch.nn.Conv2d.__init__ = forbidden
from coda.tokenizer import ContinuousVAE
ContinuousVAE.__init__ = forbidden
from coda.generator import train_maskgit
train_maskgit({str(cache)!r}, {str(tmp_path / "out")!r}, **{QUICK!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", capture_output=True, text=True)
    assert (tmp_path / "out" / "config.json").is_file()
