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

from coda.benchmarks import Report
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
from coda.tokenizer.images import ImageSource, open_images
from coda.tokenizer.images.imagenet import imagenet_classes
from coda.tokenizer.presets import adapt_preset
from coda.tokenizer.settings import AdaptSettings, RunOptions, TokenizeSettings, VaeSettings

from ..cli.failures import quiet_libraries, signals_raise
from ..coda_pipeline import CodaPipeline
from ..commands.benchmark_judge import judge_pipeline
from ..commands.model import load_whole_pipeline
from ..model_card import model_card

# Goldfish, jellyfish, king penguin, golden retriever, tabby, lion, monarch, school bus, pizza, alp.
CLASSES = (1, 107, 145, 207, 281, 291, 323, 779, 963, 970)


@dataclass(frozen=True)
class Recipe:
    """The settings of all stages.

    The VAE learns from all images, the rest from those of `classes`.
    """

    classes: Sequence[int] = CLASSES
    vae: VaeSettings = VaeSettings(
        width=64, layers_per_block=(1, 2, 2), steps=4500, batch_size=32, ema_decay=0.999, perceptual_weight=0.3
    )  # fmt: skip
    tokenizer: AdaptSettings = adapt_preset("tiny-64")
    codes: TokenizeSettings = TokenizeSettings(flip=True)
    generator: MaskGitSettings = MaskGitSettings(
        preset="tiny", hidden_size=256, depth=6, num_heads=4, steps=2_000, batch_size=64, optimizer="muon", lr=2e-3,
        ema_decay=0.998, mask_all=0.25, level_weights="sqrt", keep="best", validate_every=250,
    )  # fmt: skip
    sampling: Mapping[str, Any] = field(default_factory=dict)  # of the scheduler, where not as the training left it
    judgment: JudgeSettings = JudgeSettings()


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
    chosen, chosen_unseen = (_of_classes(source, recipe.classes) for source in (images, unseen))
    if tokenizer is None:
        if vae is None:
            with _timed(out, "vae"):
                vae = str(train_vae(images, out / "vae", recipe.vae, run, chosen_unseen))
        with _timed(out, "adapt"):
            tokenizer = str(adapt(vae, chosen, out / "adapted", recipe.tokenizer, run, chosen_unseen))
    rounded = round_weights(tokenizer, out / "tokenizer")
    if generator is None:
        with _timed(out, "tokenize-dataset"):
            cache = tokenize_dataset(rounded, chosen, out / "cache", recipe.codes, run).path
            held_out = tokenize_dataset(rounded, chosen_unseen, out / "validation-cache", run=run).path
        with _timed(out, "train-maskgit"):
            generator = str(train_maskgit(cache, out / "generator", recipe.generator, run, rounded, held_out))
    model = pack(generator, rounded, out / "model", recipe.sampling)
    pipeline = load_whole_pipeline(str(model))
    with _timed(out, "judge"):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(resolve_device(run.device))
        report = judge_pipeline(pipeline, "bundled", chosen, chosen_unseen, out / "judgment", recipe.judgment, run)
    for name in ("report.json", "nearest.png"):
        write_bytes(model / name, (out / "judgment" / name).read_bytes())
    counts = len(images), len(chosen), len(chosen_unseen)
    sections = {"Training": _training(counts, recipe, _seconds(out)), "Judgment": _judgment(report)}
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


def _of_classes(source: ImageSource, classes: Sequence[int]) -> ImageSource:
    """The images of some classes; they keep ImageNet's labels."""
    return source.subset([i for i in range(len(source)) if source.label(i) in classes])


def _training(counts: tuple[int, int, int], recipe: Recipe, seconds: Mapping[str, float]) -> str:
    """The card's section on data, settings and hours."""
    total, chosen, unseen = counts
    mirrored = " and their mirror images" if recipe.codes.flip else ""
    lines = [
        f"Made by `coda.pipeline.bundled.train` from Tiny ImageNet: the VAE learns from all {total:,} images, "
        f"tokenizer and generator from the {chosen:,} of its classes{mirrored}; {unseen:,} others validate. "
        "The photos are ImageNet's, whose terms allow research that is not commercial.",
        "",
        "| stage | hours | settings other than the defaults |",
        "| --- | --- | --- |",
    ]
    stages: dict[str, Settings] = {
        "vae": recipe.vae,
        "adapt": recipe.tokenizer,
        "tokenize-dataset": recipe.codes,
        "train-maskgit": recipe.generator,
    }
    for stage, settings in stages.items():
        if stage not in seconds:
            lines.append(f"| {stage} | | made by another run |")
            continue
        changed = (f.name for f in settings.declared() if getattr(settings, f.name) != f.default)
        words = ", ".join(f"{name} {getattr(settings, name)}" for name in changed)
        lines.append(f"| {stage} | {seconds[stage] / 3600:.2f} | {words} |")
    return "\n".join(lines)


def _judgment(report: Report) -> str:
    """The report as a section of the card."""
    page = report.to_markdown().split("\n", 1)[1].replace("\n## ", "\n### ").strip()
    return f"{page}\n\n![Samples, each beside the training image nearest to it](nearest.png)"


@contextmanager
def _timed(out: Path, stage: str) -> Iterator[None]:
    """Add the time that a stage takes to what earlier runs of it took."""
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = _seconds(out)
        write_json(out / "seconds.json", seconds | {stage: seconds.get(stage, 0) + time.monotonic() - began})


def _seconds(out: Path) -> dict[str, float]:
    file = out / "seconds.json"
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
