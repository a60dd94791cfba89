"""Train the masked transformer on a code cache alone, without a VAE and without images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from coda.tokenizer.code_cache import CodeCache, ShuffledBatches
from coda.tokenizer.fingerprint import saved_fingerprint
from coda.tokenizer.foundation.distributed import gather_over_processes, mean_over_processes
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.launcher import check_batch_size, rank_and_world_size
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import derived_seed, step_generator
from coda.tokenizer.foundation.worker_processes import load_ahead
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.monitoring import Monitor
from coda.tokenizer.training.optimization import (
    OptimizerWithEMA,
    check_finite,
    learning_rate,
    open_run_directory,
    start_accelerator,
)
from coda.tokenizer.training.run_directory import RunDirectory

from .masking import draw_training
from .objective import MaskedCodeObjective
from .presets import resolve_preset
from .scheduler import MaskGitScheduler
from .settings import MaskGitSettings
from .transformer import MaskGitTransformer

_CHECKPOINT_EVERY = 500  # steps
_NOT_COMPARED = ("preset", "gradient_checkpointing")  # they leave the result as it is, once the sizes are known


def train_maskgit(
    cache: str | Path | CodeCache,
    out: str | Path = "runs/generator",
    settings: MaskGitSettings = MaskGitSettings(),
    run: RunOptions = RunOptions(),
    tokenizer: str | Path | None = None,
) -> Path:
    """Train a generator on the codes of a cache. Rerun the same call to resume an interrupted run.

    Args:
        cache: A code cache, or its path.
        out: Directory of the generator, for `MaskGitTransformer.from_pretrained`: EMA weights, scheduler and log.
        settings: What is trained, and how.
        run: Device, precision, workers, checkpoints. A resumed run ends with the same bytes as an uninterrupted one.
        tokenizer: Directory of the tokenizer that will decode the samples. The codes must come from it; only its
            fingerprint is read. None skips the check.

    Returns:
        `out`.

    Raises:
        CodaError: If settings do not fit together, the cache is damaged or does not fit, or `out` cannot be used.
    """
    accelerator = start_accelerator(run.device, run.dtype)
    check_batch_size(settings.batch_size)
    cache = cache if isinstance(cache, CodeCache) else CodeCache(cache)
    if tokenizer is not None and (wanted := saved_fingerprint(tokenizer)) != cache.tokenizer_fingerprint:
        raise CodaError(
            f"{cache.path} holds codes of the tokenizer {cache.tokenizer_fingerprint}, not of {tokenizer}, which is "
            f"{wanted}: tokenize the data set with it, or give another cache"
        )
    settings = replace(
        settings,
        **asdict(resolve_preset(settings.preset, settings.hidden_size, settings.depth, settings.num_heads)),
        warmup=min(1_000, settings.steps // 20) if settings.warmup is None else settings.warmup,
    )
    record = {name: value for name, value in asdict(settings).items() if name not in _NOT_COMPARED}
    manifest = json.dumps(cache.manifest, sort_keys=True).encode()
    record |= {"tokenizer": cache.tokenizer_fingerprint, "cache": hashlib.sha256(manifest).hexdigest()}
    directory = open_run_directory(accelerator, out, "generator", record, run.overwrite)
    if not directory.complete:
        _train(_new_transformer(cache, settings), cache, directory, settings, run, accelerator)
    return directory.path


def _train(
    transformer: MaskGitTransformer,
    cache: CodeCache,
    directory: RunDirectory,
    settings: MaskGitSettings,
    run: RunOptions,
    accelerator: Accelerator,
) -> None:
    """The training loop, from the newest checkpoint to the finished directory."""
    assert settings.warmup is not None
    objective = accelerator.prepare(MaskedCodeObjective(transformer).train())
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer = OptimizerWithEMA(
        transformer, betas=(0.9, 0.96), ema_decay=settings.ema_decay, weight_decay=0.03, fused=fused
    )
    start, checkpoint_every = 0, run.checkpoint_every or _CHECKPOINT_EVERY
    if (checkpoint := directory.latest()) is not None:
        start = checkpoint.step
        optimizer.load_state_tensors("generator", checkpoint.tensors, updates=start)
    what = f"{settings.batch_size} of the codes of {cache.num_images:,} images a step"
    monitor = Monitor("Training the generator", accelerator, directory, settings.steps, run, checkpoint, what=what)
    monitor.begin()

    process, processes = rank_and_world_size()
    local = settings.batch_size // processes
    batches = ShuffledBatches(cache, settings.batch_size, settings.seed, (process, processes))
    with progress("Training the generator", total=settings.steps, completed=start) as bar:
        for step, (codes, labels) in enumerate(load_ahead(batches, range(start, settings.steps), run.workers), start):
            lr = learning_rate(step, settings.steps, settings.lr, settings.warmup, decay=settings.lr_decay, floor=0.01)
            generator = step_generator(settings.seed, step)
            draw = draw_training(
                cache.layout, settings.batch_size, generator,
                settings.mask_law, settings.corruption, settings.class_dropout,
            )  # fmt: skip
            draw = draw.rows(process * local, (process + 1) * local).to(accelerator.device)

            codes = codes.to(accelerator.device)
            output = objective(codes, labels.to(accelerator.device), draw, gather_over_processes(codes))
            accelerator.backward(output.loss)
            gradient = optimizer.step(lr)

            done = step + 1
            bar.advance()
            if monitor.is_due(done):
                figures = check_finite(done, loss=output.loss, gradient=gradient)
                level_losses = mean_over_processes(output.level_losses)
                bar.advance(0, loss=figures["loss"])
                figures |= {f"loss_level_{i}": loss for i, loss in enumerate(level_losses.tolist())}
                monitor.log(done, **figures, lr=lr)
            if done % checkpoint_every == 0 and done < settings.steps:
                directory.save(done, optimizer.state_tensors("generator"))

    monitor.finish()
    optimizer.use_average()
    directory.finish(lambda folder: _write(folder, transformer, settings.mask_law))
    accelerator.wait_for_everyone()


def _new_transformer(cache: CodeCache, settings: MaskGitSettings) -> MaskGitTransformer:
    """A transformer for the cache's codes, its weights drawn from the seed."""
    seen = sorted(set(cache.labels.tolist()) - {-1})
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed("weights", settings.seed))
        transformer = MaskGitTransformer(
            sides=[list(side) for side in cache.layout.sides],
            codebook_size=cache.layout.codebook_size,
            latent_channels=cache.value_table.shape[1],
            num_classes=cache.num_classes,
            hidden_size=settings.hidden_size,
            depth=settings.depth,
            num_heads=settings.num_heads,
            class_labels=seen,
            class_names=cache.class_names,
            tokenizer_fingerprint=cache.tokenizer_fingerprint,
        )
        transformer.initialize_embedding(cache.value_table)
    if settings.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def _write(folder: Path, transformer: MaskGitTransformer, mask_law: str) -> None:
    """The finished directory: the transformer, and a scheduler that samples from it."""
    transformer.save_pretrained(folder)
    steps = max(16, transformer.layout.num_levels)
    MaskGitScheduler(num_inference_steps=steps, mask_schedule=mask_law).save_pretrained(folder / "scheduler")
