"""Training from a cache alone."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from coda.generator import MaskGitScheduler, MaskGitTransformer, train_maskgit
from coda.generator.settings import MaskGitSettings
from coda.generator.validation import split_samples, validation_of
from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.settings import RunOptions

CPU = RunOptions(device="cpu")
QUICK = dict(preset="pocket", hidden_size=16, depth=1, num_heads=2, steps=6, batch_size=8)


def quick(**changed):
    return MaskGitSettings(**(QUICK | changed))


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


@pytest.fixture(scope="module")
def plain(cache, tmp_path_factory):
    """A generator trained with the quick settings."""
    return train_maskgit(cache, tmp_path_factory.mktemp("plain") / "generator", quick(), CPU)


def test_it_learns_what_a_class_looks_like_and_samples_it(cache, prototypes, tmp_path):
    settings = MaskGitSettings(preset="pocket", steps=120, batch_size=48, lr=4e-3, ema_decay=0.95)
    out = train_maskgit(cache, tmp_path / "out", settings, CPU)
    model = MaskGitTransformer.from_pretrained(out)
    scheduler = MaskGitScheduler.from_pretrained(out, subfolder="scheduler")
    labels = torch.arange(3).repeat_interleave(8)
    generators = [torch.Generator().manual_seed(seed) for seed in range(24)]
    codes = scheduler.sample(model.predictor(labels), model.layout, model.value_table, generators)
    agreement = (codes[:, None] == prototypes[None]).float().mean(dim=2)  # (24, classes)
    assert (agreement.argmax(dim=1) == labels).all()
    assert agreement.gather(1, labels[:, None]).mean() > 0.85
    losses = [json.loads(line).get("loss") for line in (out / "log.jsonl").read_text().splitlines()][1:]
    assert losses[-1] < 0.5 * losses[0]


def test_the_tokenizer_must_be_the_one_that_made_the_cache(cache, plain, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    with pytest.raises(CodaError, match="holds no tokenizer"):
        train_maskgit(cache, tmp_path / "out", quick(), CPU, tokenizer)
    tokenizer.mkdir()
    (tokenizer / "coda_tokenizer.json").write_text(json.dumps({"fingerprint": "e" * 64}))
    with pytest.raises(CodaError, match=f"codes of the tokenizer {'f' * 64}, not of .*, which is {'e' * 64}"):
        train_maskgit(cache, tmp_path / "out", quick(), CPU, tokenizer)
    assert not (tmp_path / "out").exists()
    (tokenizer / "coda_tokenizer.json").write_text(json.dumps({"fingerprint": "f" * 64}))
    assert train_maskgit(cache, plain, quick(), CPU, tokenizer) == plain


def test_the_directory_records_what_it_was_trained_on(cache, plain):
    cache, model = CodeCache(cache), MaskGitTransformer.from_pretrained(plain)
    assert model.layout == cache.layout
    assert torch.equal(model.value_table, cache.value_table)
    assert model.class_labels == (0, 1, 2)
    assert model.class_names == ("ant", "bee", "cat", "dog", "eel")
    assert model.tokenizer_fingerprint == "f" * 64
    scheduler = MaskGitScheduler.from_pretrained(plain, subfolder="scheduler").config
    assert scheduler.mask_schedule == "cosine"
    assert (scheduler.step_share, scheduler.guidance_schedule) == ("equal", "linear")
    assert not (plain / "checkpoints").exists()


@pytest.mark.parametrize(("reads", "workers"), [(1, 0), (3, 1), (4, 0)])
def test_a_resumed_run_ends_with_the_same_bytes(cache, plain, tmp_path, content, reads, workers):
    with pytest.raises(KeyboardInterrupt):
        train_maskgit(DyingCache(cache, reads), tmp_path / "cut", quick(), replace(CPU, checkpoint_every=2))
    run = replace(CPU, checkpoint_every=1, workers=workers)
    assert content(train_maskgit(cache, tmp_path / "cut", quick(), run)) == content(plain)


@pytest.fixture(scope="module")
def best(cache, tmp_path_factory):
    """A generator that overfits, of which the best average is kept."""
    settings = quick(
        keep="best", validation_share=0.9, validate_every=2, dropout=0.1, lr=5e-2, ema_decay=0.5, steps=28,
        lr_decay="constant", hidden_size=32,
    )  # fmt: skip
    return train_maskgit(cache, tmp_path_factory.mktemp("best") / "generator", settings, CPU)


def test_the_best_average_is_kept_also_by_a_resumed_run(cache, best, tmp_path, content, capsys):
    settings = MaskGitSettings.from_mapping(json.loads((best / "run.json").read_text())["settings"])
    log = [json.loads(line) for line in (best / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in log if "validation_loss" in line}
    at = min(losses, key=lambda step: losses[step])
    assert list(losses) == list(range(0, 29, 2)) and 0 < at < 24

    dying = DyingCache(cache, at + 5 + 2 * (at // 2 + 2))  # a validation reads two batches
    with pytest.raises(KeyboardInterrupt):
        train_maskgit(dying, tmp_path / "cut", settings, replace(CPU, checkpoint_every=2))
    assert content(train_maskgit(cache, tmp_path / "cut", settings, CPU)) == content(best)
    end = capsys.readouterr().err.splitlines()[-1]
    assert f"kept {losses[at]:.4g} at step {at}; levels past their best by more than 1 %:" in end
    last = train_maskgit(cache, tmp_path / "last", replace(settings, keep="last"), CPU)
    assert weights(last) != weights(best)
    assert f"lowest {losses[at]:.4g} at step {at}; levels past" in capsys.readouterr().err.splitlines()[-1]


def test_parts_of_a_batch_give_its_gradients(cache, plain, tmp_path):
    parts = train_maskgit(cache, tmp_path / "parts", quick(accumulation=4), CPU)
    a, b = ((path / "log.jsonl").read_text().splitlines()[-1] for path in (plain, parts))
    assert json.loads(a)["loss"] == pytest.approx(json.loads(b)["loss"], rel=1e-5)
    with pytest.raises(CodaError, match="batch of 8 cannot be accumulated in 3"):
        train_maskgit(cache, tmp_path / "out", quick(accumulation=3), CPU)


def test_another_cache_can_be_validated_on(cache, make_cache, tmp_path):
    other = make_cache(images=40)
    out = train_maskgit(cache, tmp_path / "out", quick(validate_every=3), CPU, validation=other)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "validation_loss_level_2" in line] == [0, 3, 6]
    with pytest.raises(CodaError, match="codes of another tokenizer than"):
        train_maskgit(cache, out, quick(), CPU, validation=make_cache(tokenizer="e"))


def test_the_variants_of_a_held_out_image_are_held_out_too(cache):
    class Mirrored(CodeCache):
        def __init__(self, path):
            super().__init__(path)
            self.num_images, self.num_variants = self.num_images // 2, 2

    trained, held_out = split_samples(Mirrored(cache), quick(validation_share=0.3))
    assert sorted([*trained.tolist(), *held_out.tolist()]) == list(range(96)) and 10 < len(held_out) < 50
    assert set((held_out // 2).tolist()).isdisjoint((trained // 2).tolist())
    with pytest.raises(CodaError, match="keep best needs held-out codes"):
        validation_of(CodeCache(cache), None, quick(validation_share=0, keep="best"))


def test_a_finished_run_is_not_repeated_and_another_is_refused(make_cache, tmp_path):
    cache, out = make_cache(), tmp_path / "out"
    train_maskgit(cache, out, quick(steps=2), CPU)
    before = (out / "config.json").stat().st_mtime_ns
    train_maskgit(DyingCache(cache, 0), out, quick(steps=2), CPU)
    assert (out / "config.json").stat().st_mtime_ns == before
    with pytest.raises(CodaError, match="lr"):
        train_maskgit(cache, out, quick(steps=2, lr=1e-3), CPU)
    with pytest.raises(CodaError, match=f"tokenizer '{'f' * 64}' there, '{'e' * 64}' asked"):
        train_maskgit(make_cache(tokenizer="e"), out, quick(steps=2), CPU)
    train_maskgit(cache, out, quick(steps=2, lr=1e-3), replace(CPU, overwrite=True))


@pytest.mark.parametrize(
    "changed",
    [
        dict(lr=1e-2), dict(lr_decay="constant"), dict(warmup=5), dict(class_dropout=0.9), dict(corruption=0.9),
        dict(mask_law="linear"), dict(ema_decay=0.0), dict(seed=1), dict(batch_size=9), dict(depth=2),
        dict(num_heads=4), dict(hidden_size=32), dict(steps=5), dict(dropout=0.5), dict(label_smoothing=0.5),
        dict(weight_decay=9.0), dict(level_weights="sqrt"), dict(mask_all=1.0), dict(ema_half_life=3.0),
        dict(validation_share=0.5),
        dict(dtype="bfloat16"),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_does_something(cache, plain, tmp_path, changed):
    settings, run = MaskGitSettings.from_mapping(QUICK | changed), replace(CPU, dtype=changed.get("dtype", "auto"))
    other = train_maskgit(cache, tmp_path / "other", settings, run)
    assert weights(other) != weights(plain)
    scheduler = MaskGitScheduler.from_pretrained(other, subfolder="scheduler")
    assert scheduler.config.mask_schedule == changed.get("mask_law", "cosine")


def test_gradient_checkpointing_only_saves_memory(cache, plain, tmp_path):
    saving = train_maskgit(cache, tmp_path / "saving", quick(gradient_checkpointing=True), CPU)
    a, b = (MaskGitTransformer.from_pretrained(path).state_dict() for path in (plain, saving))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], msg=name)
    train_maskgit(DyingCache(cache, 0), plain, quick(gradient_checkpointing=True), CPU)  # it is the same run


def test_a_cache_without_labels_trains_a_generator_without_classes(make_cache, tmp_path):
    out = train_maskgit(make_cache(labelled=False), tmp_path / "out", quick(), CPU)
    model = MaskGitTransformer.from_pretrained(out)
    assert model.class_labels == ()
    generators = [torch.Generator().manual_seed(0)]
    codes = MaskGitScheduler().sample(model.predictor([None]), model.layout, model.value_table, generators)
    assert codes.shape == (1, model.layout.num_tokens)


def test_wrong_settings_are_refused_before_anything_is_written(cache, tmp_path):
    with pytest.raises(CodaError, match="5 heads"):
        train_maskgit(cache, tmp_path / "out", quick(num_heads=5), CPU)
    assert not (tmp_path / "out").exists()


def damage(file, **arrays):
    """Replace arrays of a file by others of equal size."""
    with safe_open(file, "pt") as opened:
        metadata, found = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(found | {name: found[name].clone().fill_(value) for name, value in arrays.items()}, file, metadata)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("file", "arrays", "message"),
    [
        ("shard-00000", dict(codes=200), "holds code 200, beyond a codebook of 16"),
        ("shard-00000", dict(labels=100), "holds labels from 100"),
        ("value_table", dict(value_table=float("nan")), "NaN or infinite"),
    ],
)
def test_a_damaged_cache_is_refused_in_one_line(make_cache, tmp_path, file, arrays, message, workers):
    cache = make_cache()
    damage(cache / f"{file}.safetensors", **arrays)
    with pytest.raises(CodaError, match=message) as error:
        train_maskgit(cache, tmp_path / "out", quick(), replace(CPU, workers=workers))
    assert "\n" not in str(error.value)


def test_a_diverged_training_is_reported(cache, tmp_path):
    with pytest.raises(CodaError, match="diverged"):
        train_maskgit(cache, tmp_path / "out", quick(lr=1e38), CPU)
