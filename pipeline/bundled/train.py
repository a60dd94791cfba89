"""Make the bundled model: the recipe, from the parquet shards of Tiny ImageNet to the folder `model/`.

    python -m coda.pipeline.bundled.train --data 'shards/train-*.parquet' --validation 'shards/val-*.parquet'

Every stage has a folder in --out. Killed at any time, the same command goes on; what is finished is not done again.
--vae, --tokenizer and --generator take what another run has made, and leave out the stages before. The result, the
folder model in --out, replaces `pipeline/bundled/model`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from coda.benchmarks import Report
from coda.benchmarks.reports.provenance import hardware
from coda.benchmarks.settings import JudgeSettings
from coda.generator import MaskGitScheduler, train_maskgit
from coda.generator.settings import MaskGitSettings
from coda.tokenizer import CodaTokenizer, adapt, tokenize_dataset, train_vae
from coda.tokenizer.fingerprint import MANIFEST
from coda.tokenizer.foundation.atomic_io import publish_directory, remove, write_bytes, write_json
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.reading import read_json
from coda.tokenizer.foundation.settings import Settings
from coda.tokenizer.images import open_images
from coda.tokenizer.images.imagenet import imagenet_classes
from coda.tokenizer.presets import adapt_preset
from coda.tokenizer.settings import AdaptSettings, RunOptions, TokenizeSettings, VaeSettings

from ..cli.failures import quiet_libraries, signals_raise
from ..coda_pipeline import CodaPipeline
from ..commands.benchmark_judge import judge_pipeline
from ..commands.model import load_whole_pipeline
from ..model_card import model_card

# Goldfish, jellyfish, king penguin, golden retriever, tabby, lion, monarch, school bus, pizza, alp.
JUDGED = (1, 107, 145, 207, 281, 291, 323, 779, 963, 970)
_STAGES = "stages.json"  # seconds and hardware of what is made


@dataclass(frozen=True)
class Recipe:
    """The settings of all stages.

    Attributes:
        sampling: Settings of the scheduler, where not as the training left it.
        judged: Classes that are sampled for the judgment, and among which the classifier chooses.
    """

    vae: VaeSettings = VaeSettings(steps=16_000, batch_size=32, ema_decay=0.999)
    tokenizer: AdaptSettings = adapt_preset("tiny-64", decoder_steps=1_000, batch_size=64)
    codes: TokenizeSettings = TokenizeSettings(flip=True, batch_size=256)
    generator: MaskGitSettings = MaskGitSettings(
        preset="compact", steps=4_000, batch_size=512, optimizer="muon", lr=2e-3, ema_decay=0.998, mask_all=0.25,
        level_weights="sqrt", keep="best",
    )  # fmt: skip
    sampling: Mapping[str, Any] = field(default_factory=dict)
    judgment: JudgeSettings = JudgeSettings()
    judged: Sequence[int] = JUDGED


def make_model(
    data: str,
    validation: str,
    out: Path,
    vae: str | None = None,
    tokenizer: str | None = None,
    generator: str | None = None,
    recipe: Recipe = Recipe(),
    run: RunOptions = RunOptions(),
) -> Path:
    """Run all stages that are not done yet.

    Args:
        data: Training images with ImageNet's labels, as `open_images` takes them.
        validation: Other images of the same classes.
        out: Directory of the stages.
        vae: A VAE to start from.
        tokenizer: A tokenizer to start from; its weights are rounded.
        generator: A generator that was trained on codes of the rounded tokenizer.
        recipe: Settings of the stages.
        run: Device and workers of all stages.

    Returns:
        The directory of the model.

    Raises:
        CodaError: As the stages.
    """
    images, unseen = (open_images(place, num_classes=len(imagenet_classes())) for place in (data, validation))
    device = resolve_device(run.device)
    if tokenizer is None:
        if vae is None:
            with _recorded(out, "train-vae", device):
                vae = str(train_vae(images, out / "vae", recipe.vae, run, unseen))
        with _recorded(out, "adapt", device):
            tokenizer = str(adapt(vae, images, out / "adapted", recipe.tokenizer, run, unseen))
    rounded = round_weights(tokenizer, out / "tokenizer")
    if generator is None:
        with _recorded(out, "tokenize-dataset", device):
            cache = tokenize_dataset(rounded, images, out / "cache", recipe.codes, run).path
            held_out = tokenize_dataset(rounded, unseen, out / "validation-cache", run=run).path
        with _recorded(out, "train-maskgit", device):
            generator = str(train_maskgit(cache, out / "generator", recipe.generator, run, rounded, held_out))
    model = pack(generator, rounded, out / "model", recipe.sampling)
    pipeline = load_whole_pipeline(str(model))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    judged = recipe.judgment, run, recipe.judged
    report = judge_pipeline(pipeline, "bundled", images, unseen, out / "judgment", *judged)
    for name in ("report.json", "nearest.png"):
        write_bytes(model / name, (out / "judgment" / name).read_bytes())
    counts = len(images), len(unseen)
    sections = {"Training": _training(counts, recipe, _stages(out)), "Judgment": _judgment(report)}
    results = report.to_eval_results("unconditional-image-generation", "Tiny ImageNet")
    write_bytes(model / "README.md", model_card(pipeline, "bundled", sections, results).encode())
    return model


def round_weights(tokenizer: str | Path, out: Path) -> Path:
    """Save a tokenizer with its weights rounded to numbers that float16 holds; returns `out`.

    This comes before any code is made: the rounded tokenizer has its own codes and fingerprint.
    """
    model = CodaTokenizer.from_pretrained(tokenizer)
    for weight in model.state_dict().values():
        weight.copy_(weight.half())
    CodaTokenizer(model.vae, model.quantizer).save_pretrained(out)
    return out


def pack(generator: str | Path, tokenizer: Path, out: Path, sampling: Mapping[str, Any]) -> Path:
    """Save a pipeline in float16, which is a tokenizer's directory too; returns `out`.

    Args:
        generator: Directory of the generator.
        tokenizer: Directory that `round_weights` made.
        out: Directory to make; an earlier one is replaced.
        sampling: Settings of the scheduler to change.
    """
    pipeline = CodaPipeline.from_parts(generator, tokenizer)
    pipeline.scheduler = MaskGitScheduler.from_config(pipeline.scheduler.config, **sampling)
    described = pipeline.tokenizer.describe()  # in float32
    for module in (pipeline.vae, pipeline.quantizer, pipeline.transformer):
        module.half().register_to_config(_name_or_path="bundled")  # diffusers notes the path it came from
    partial = out.with_name(f".{out.name}.partial")
    remove(partial)
    pipeline.save_pretrained(partial)
    write_json(partial / MANIFEST, described)
    return publish_directory(partial, out, overwrite=True)


def _training(counts: tuple[int, int], recipe: Recipe, made: Mapping[str, Mapping[str, Any]]) -> str:
    """The card's section on data, settings, hours and hardware."""
    total, unseen = counts
    mirrored = ", the generator also from their mirror images" if recipe.codes.flip else ""
    lines = [
        f"Made by `coda.pipeline.bundled.train` from {total:,} images of Tiny ImageNet{mirrored}; {unseen:,} others "
        "validate. The photos are ImageNet's, whose terms allow research that is not commercial.",
        "",
        "| stage | minutes | hardware | settings other than the defaults |",
        "| --- | --- | --- | --- |",
    ]
    stages: dict[str, Settings] = {
        "train-vae": recipe.vae,
        "adapt": recipe.tokenizer,
        "tokenize-dataset": recipe.codes,
        "train-maskgit": recipe.generator,
    }
    for stage, settings in stages.items():
        if stage not in made:
            lines.append(f"| {stage} | | | made by another run |")
            continue
        changed = (f.name for f in settings.declared() if getattr(settings, f.name) != f.default)
        words = ", ".join(f"{name} {getattr(settings, name)}" for name in changed)
        lines.append(f"| {stage} | {made[stage]['seconds'] / 60:.1f} | {made[stage]['hardware']} | {words} |")
    return "\n".join(lines)


def _judgment(report: Report) -> str:
    """The report as a section of the card."""
    page = report.to_markdown().split("\n", 1)[1].replace("\n## ", "\n### ").strip()
    return f"{page}\n\n![Samples, each beside the training image nearest to it](nearest.png)"


@contextmanager
def _recorded(out: Path, stage: str, device: torch.device) -> Iterator[None]:
    """Note the hardware of a stage, and add the time that it takes to what earlier runs of it took."""
    began = time.monotonic()
    try:
        yield
    finally:
        made, found = _stages(out), hardware(device)
        words = found.get("gpu") or f"{found['cores']} cores of {found['cpu']}"
        made.setdefault(stage, {"seconds": 0, "hardware": words})["seconds"] += time.monotonic() - began
        write_json(out / _STAGES, made)


def _stages(out: Path) -> dict[str, dict[str, Any]]:
    file = out / _STAGES
    return read_json(file) if file.is_file() else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line; returns the exit status."""
    parser = argparse.ArgumentParser("coda.pipeline.bundled.train", description="Make the bundled model.")
    parser.add_argument("--data", required=True, help="training images with ImageNet's labels")
    parser.add_argument("--validation", required=True, help="other images of the same classes")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bundled"), help="output directory [default: %(default)s]"
    )
    for stage in ("vae", "tokenizer", "generator"):
        parser.add_argument(f"--{stage}", help=f"a {stage} that is there already")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [default: auto]")
    parser.add_argument("--dtype", default="auto", help="precision of the trainings [default: auto]")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images [default: 0]")
    given = vars(parser.parse_args(argv))
    try:
        with signals_raise(), quiet_libraries():
            run = RunOptions(**{name: given.pop(name) for name in ("device", "dtype", "workers")})
            model = make_model(**given, run=run)
    except CodaError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train: interrupted; run the same command to resume", file=sys.stderr)
        return 130
    print(f"Made the model in {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
