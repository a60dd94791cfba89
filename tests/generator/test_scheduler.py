"""The scheduler: settings in, the pure sampler's codes out."""

import json

import pytest
import torch

from coda.generator import MaskGitScheduler
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout

LAYOUT = CodeLayout([1, 2, 4], 9)
TABLE = torch.randn(9, 2, generator=torch.Generator().manual_seed(3))


def predict(codes, prefix, level, cells, scale):
    base = (
        torch.cos(cells[..., None] * 0.7 + torch.arange(9) * (1 + level)) + 0.3 * prefix.sum((1, 2, 3))[:, None, None]
    )
    return [(scale * base + (codes == 9).sum(1)[:, None, None] * torch.arange(9) * 0.1).flatten(0, 1)]


def sample(scheduler, **settings):
    return scheduler.sample(predict, LAYOUT, TABLE, [torch.Generator().manual_seed(s) for s in range(16)], **settings)


def test_every_setting_changes_the_samples():
    plain = sample(MaskGitScheduler(num_inference_steps=9))
    changes = dict(
        num_inference_steps=[1, 1, 1], order="halton", temperature=0.3, confidence_noise=0.0, mask_schedule="linear",
        step_share="equal", top_k=2, top_p=0.5, redraw=0.5,
        guidance_scale=4.0, guidance_schedule="linear", guidance_interval=(0.5, 1.0),
    )  # fmt: skip
    assert changes.keys() == {k for k in MaskGitScheduler().config if not k.startswith("_")}
    for name, value in changes.items():
        changed = {"num_inference_steps": 9, name: value}
        assert not torch.equal(sample(MaskGitScheduler(**changed)), plain), name


def test_arguments_of_a_call_come_before_the_configuration():
    scheduler = MaskGitScheduler()
    assert torch.equal(sample(scheduler, guidance_scale=3.0), sample(MaskGitScheduler(guidance_scale=3.0)))
    assert torch.equal(sample(scheduler, num_inference_steps=5), sample(MaskGitScheduler(num_inference_steps=5)))


def test_timesteps_count_all_steps():
    scheduler = MaskGitScheduler()
    scheduler.set_timesteps(6, LAYOUT)
    assert scheduler.steps == (1, 2, 3)
    assert scheduler.timesteps.tolist() == list(range(6))


def test_from_config_replaces_single_settings():
    scheduler = MaskGitScheduler.from_config(MaskGitScheduler(temperature=0.7).config, order="random")
    assert (scheduler.config.order, scheduler.config.temperature) == ("random", 0.7)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(order="snail"), dict(order=["halton"]), dict(mask_schedule="sine"), dict(guidance_schedule="up"),
        dict(temperature=-1.0), dict(temperature=float("nan")), dict(temperature="hot"), dict(confidence_noise=-1.0),
        dict(step_share="most"), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5), dict(redraw=2.0),
        dict(guidance_scale=float("inf")), dict(guidance_interval=(0.7, 0.2)), dict(guidance_interval=(0.2,)),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_at_once(wrong):
    with pytest.raises(CodaError, match=next(iter(wrong))):
        MaskGitScheduler(**wrong)
    with pytest.raises(CodaError, match="guidance_scale is nan"):
        sample(MaskGitScheduler(), guidance_scale=float("nan"))


def test_an_older_config_is_read(tmp_path):
    config = {"_class_name": "MaskGitScheduler", "mask_law": "arccos", "temperature": 0.5}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    loaded = MaskGitScheduler.from_pretrained(tmp_path)
    assert (loaded.config.mask_schedule, loaded.config.temperature) == ("arccos", 0.5)
    old = dict(
        num_inference_steps=8, order="confidence", temperature=0.8, confidence_noise=4.5, mask_schedule="cosine",
        guidance_scale=2.0, guidance_schedule="linear", guidance_interval=[0.0, 1.0],
    )  # fmt: skip
    codes = sample(MaskGitScheduler.from_config(old))[0].tolist()  # sampled as before there were more settings
    assert codes == [2, 6, 5, 6, 5, 8, 8, 8, 8, 8, 5, 7, 7, 8, 8, 8, 8, 8, 8, 7, 7]
    loaded.save_pretrained(tmp_path)
    assert MaskGitScheduler.from_pretrained(tmp_path).config.mask_schedule == "arccos"
