"""Train the masked transformer on a code cache alone, without a VAE and without images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from coda.tokenizer.code_cache import CodeCache, ShuffledBatches
from coda.tokenizer.fingerprint import saved_fingerprint
from coda.tokenizer.foundation.distributed import gather_over_processes, mean_over_processes
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.launcher import check_batch_size, rank_and_world_size
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import derived_seed, forked_random_state, step_generator
from coda.tokenizer.foundation.worker_processes import load_ahead
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.monitoring import Monitor
from coda.tokenizer.training.optimization import (
    OptimizerWithEMA,
    check_finite,
    learning_rate,
    open_run_directory,
    start_accelerator,
    synchronize_gradients,
)
from coda.tokenizer.training.run_directory import RunDirectory

from .masking import TrainingDraw, draw_training
from .objective import MaskedCodeObjective, ObjectiveOutput
from .scheduler import MaskGitScheduler
from .settings import MaskGitSettings
from .transformer import MaskGitTransformer
from .validation import CodeValidation, describe_best, lowest_loss, validation_of

_CHECKPOINT_EVERY = 500  # steps
_BEST = "best."  # begins the names of the best average's weights in a checkpoint
_NOT_COMPARED = ("preset", "gradient_checkpointing")  # they leave the result as it is, once the sizes are known


def train_maskgit(
    cache: str | Path | CodeCache,
    out: str | Path = "runs/generator",
    settings: MaskGitSettings = MaskGitSettings(),
    run: RunOptions = RunOptions(),
    tokenizer: str | Path | None = None,
    validation: str | Path | CodeCache | None = None,
) -> Path:
    """Train a generator on the codes of a cache. Rerun the same call to resume an interrupted run.

    Args:
        cache: A code cache, or its path.
        out: Directory of the generator, for `MaskGitTransformer.from_pretrained`: EMA weights, scheduler and log.
        settings: What is trained, and how.
        run: Device, precision, workers, checkpoints. A resumed run ends with the same bytes as an uninterrupted one.
        tokenizer: Directory of the tokenizer that will decode the samples. The codes must come from it; only its
            fingerprint is read. None skips the check.
        validation: Another cache of the same tokenizer to validate on; then no image of `cache` is held out.

    Returns:
        `out`.

    Raises:
        CodaError: If settings do not fit together, the cache is damaged or does not fit, or `out` cannot be used.
    """
    accelerator = start_accelerator(run.device, run.dtype)
    check_batch_size(settings.batch_size, settings.accumulation)
    cache = cache if isinstance(cache, CodeCache) else CodeCache(cache)
    if tokenizer is not None and (wanted := saved_fingerprint(tokenizer)) != cache.tokenizer_fingerprint:
        raise CodaError(
            f"{cache.path} holds codes of the tokenizer {cache.tokenizer_fingerprint}, not of {tokenizer}, which is "
            f"{wanted}: tokenize the data set with it, or give another cache"
        )
    record = {name: value for name, value in asdict(settings).items() if name not in _NOT_COMPARED}
    record |= {"tokenizer": cache.tokenizer_fingerprint, "cache": _digest(cache)}
    if validation is not None:
        validation = validation if isinstance(validation, CodeCache) else CodeCache(validation)
        record["validation"] = _digest(validation)
    samples, held_out = validation_of(cache, validation, settings)
    directory = open_run_directory(accelerator, out, "generator", record, run.overwrite)
    if not directory.complete:
        _train(_transformer_for(cache, settings), cache, samples, held_out, directory, settings, run, accelerator)
    return directory.path


def _digest(cache: CodeCache) -> str:
    """What a cache holds, as a hash of its manifest."""
    return hashlib.sha256(json.dumps(cache.manifest, sort_keys=True).encode()).hexdigest()


def _train(
    transformer: MaskGitTransformer,
    cache: CodeCache,
    samples: torch.Tensor,
    held_out: CodeValidation,
    directory: RunDirectory,
    settings: MaskGitSettings,
    run: RunOptions,
    accelerator: Accelerator,
) -> None:
    """The training loop, from the newest checkpoint to the finished directory."""
    device = accelerator.device
    objective = MaskedCodeObjective(transformer, settings.level_weights, settings.label_smoothing).train()
    model = accelerator.prepare(objective)
    fused = device.type in ("cpu", "cuda")
    optimizer = OptimizerWithEMA(
        transformer,
        (0.9, 0.96),
        settings.ema_decay,
        weight_decay=settings.weight_decay,
        fused=fused,
        optimizer=settings.optimizer,
        precision=accelerator.mixed_precision,
    )
    start, checkpoint_every = 0, run.checkpoint_every or _CHECKPOINT_EVERY
    best: dict[str, torch.Tensor] = {}
    if (checkpoint := directory.latest()) is not None:
        start = checkpoint.step
        optimizer.load_state_tensors("generator", checkpoint.tensors, updates=start)
        best = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(_BEST)}
    monitor = Monitor("Training the generator", accelerator, directory, settings.steps, run, checkpoint, held_out)

    def losses(batches: Iterable[tuple[torch.Tensor, torch.Tensor, TrainingDraw]]) -> list[torch.Tensor]:
        with optimizer.averaged(), accelerator.autocast():
            objective.eval()
            found = [objective(*batch).level_losses for batch in batches]
            objective.train()
        return found

    monitor.begin(losses)
    lowest = lowest_loss(directory.read_log())
    process, processes = rank_and_world_size()
    local = settings.batch_size // processes
    batches = ShuffledBatches(cache, settings.batch_size, settings.seed, (process, processes), samples)
    with progress("Training the generator", total=settings.steps, completed=start) as bar, forked_random_state(device):
        for step, (codes, labels) in enumerate(load_ahead(batches, range(start, settings.steps), run.workers), start):
            lr = learning_rate(step, settings.steps, settings.lr, settings.warmup, decay=settings.lr_decay, floor=0.01)
            draw = draw_training(
                cache.layout, settings.batch_size, step_generator(settings.seed, step),
                settings.mask_law, settings.corruption, settings.class_dropout, settings.mask_all,
            )  # fmt: skip
            draw = draw.rows(process * local, (process + 1) * local)
            if settings.dropout:
                torch.manual_seed(derived_seed("dropout", settings.seed, step, process))
            codes, labels = codes.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss, level_losses = _accumulate(model, accelerator, codes, labels, draw, settings.accumulation)
            gradient = optimizer.step(lr)

            done = step + 1
            bar.advance()
            if monitor.is_due(done):
                figures = check_finite(done, loss=loss, gradient=gradient)
                means = mean_over_processes(level_losses).tolist()
                figures |= {f"loss_level_{i}": mean for i, mean in enumerate(means)} | monitor.look(done, losses)
                bar.advance(0, loss=figures["loss"], **monitor.shown)
                monitor.log(done, **figures, lr=lr)
                if settings.keep == "best" and figures.get("validation_loss", math.inf) < lowest:
                    lowest = figures["validation_loss"]
                    best = {_BEST + name: average.cpu().clone() for name, average in optimizer.average().items()}
            if done % checkpoint_every == 0 and done < settings.steps:
                directory.save(done, optimizer.state_tensors("generator") | best)

    monitor.finish(describe_best(directory.read_log(), cache.layout, settings.keep))
    optimizer.use_average()
    transformer.load_state_dict({name.removeprefix(_BEST): weight for name, weight in best.items()}, strict=False)
    directory.finish(lambda folder: _write(folder, transformer, settings.mask_law))
    accelerator.wait_for_everyone()


def _accumulate(
    model: nn.Module,
    accelerator: Accelerator,
    codes: torch.Tensor,
    labels: torch.Tensor,
    draw: TrainingDraw,
    parts: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a process's share of a batch, in equal parts: loss and losses per level, without gradient."""
    everyone, size = gather_over_processes(codes), len(codes) // parts
    found = []
    for part in range(parts):
        synchronize_gradients(model, part == parts - 1)
        first, last = part * size, (part + 1) * size
        output: ObjectiveOutput = model(
            codes[first:last], labels[first:last], draw.rows(first, last).to(codes.device), everyone
        )
        accelerator.backward(output.loss / parts)
        found.append((output.loss.detach(), output.level_losses))
    loss, level_losses = (torch.stack(values).mean(dim=0) for values in zip(*found, strict=True))
    return loss, level_losses


def new_transformer(
    layout: CodeLayout, value_table: torch.Tensor, num_classes: int, settings: MaskGitSettings, **names: Any
) -> MaskGitTransformer:
    """A transformer whose weights are drawn from the seed.

    Args:
        layout: Layout of the codes.
        value_table: Values (K, C) of the codes.
        num_classes: Number of classes.
        settings: Width, depth, heads, dropout, seed.
        names: class_labels, class_names and tokenizer_fingerprint, as `MaskGitTransformer` takes them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed("weights", settings.seed))
        transformer = MaskGitTransformer(
            sides=[list(side) for side in layout.sides],
            codebook_size=layout.codebook_size,
            latent_channels=value_table.shape[1],
            num_classes=num_classes,
            hidden_size=settings.hidden_size,
            depth=settings.depth,
            num_heads=settings.num_heads,
            dropout=settings.dropout,
            **names,
        )
        transformer.initialize_embedding(value_table)
    if settings.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def _transformer_for(cache: CodeCache, settings: MaskGitSettings) -> MaskGitTransformer:
    """A transformer for the codes of a cache, which remembers the cache's classes and tokenizer."""
    return new_transformer(
        cache.layout,
        cache.value_table,
        cache.num_classes,
        settings,
        class_labels=sorted(set(cache.labels.tolist()) - {-1}),
        class_names=cache.class_names,
        tokenizer_fingerprint=cache.tokenizer_fingerprint,
    )


def _write(folder: Path, transformer: MaskGitTransformer, mask_law: str) -> None:
    """The finished directory: the transformer, and a scheduler that samples from it.

    Steps go to the coarse levels, where HMAR (arXiv 2506.04421) finds the gain, and guidance grows over the levels, as
    VAR's does (arXiv 2404.02905): from 1 to 3, which is 2 on average. `coda sweep` finds better values for a model.
    """
    transformer.save_pretrained(folder)
    MaskGitScheduler(
        num_inference_steps=max(16, transformer.layout.num_levels),
        mask_schedule=mask_law,
        step_share="equal",
        guidance_scale=3.0,
        guidance_schedule="linear",
    ).save_pretrained(folder / "scheduler")
