"""Training the masked transformer from a code cache alone: no VAE is loaded, no pixel is seen."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from coda.tokenizer.code_cache import CodeCache, ShuffledBatches
from coda.tokenizer.fingerprint import saved_fingerprint
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.launcher import check_batch_size, rank_and_world_size
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import derived_seed, step_generator
from coda.tokenizer.training.optimization import start_accelerator
from coda.tokenizer.training.run_directory import RunDirectory

from .masking import draw_training
from .objective import MaskedCodeObjective
from .presets import resolve_preset
from .scheduler import MaskGitScheduler
from .schedules import learning_rate_at, mask_ratio
from .training_state import checkpoint_tensors, new_average, new_optimizer, restore
from .transformer import MaskGitTransformer

_LOG_EVERY = 20
_LARGEST_GRADIENT = 1.0


def train_maskgit(
    cache: str | Path | CodeCache,
    out: str | Path = "runs/generator",
    preset: str = "small",
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    steps: int = 10_000,
    batch_size: int = 64,
    lr: float = 5e-4,
    lr_decay: str = "cosine",
    warmup: int | None = None,
    class_dropout: float = 0.1,
    corruption: float = 0.2,
    mask_law: str = "cosine",
    ema_decay: float = 0.9995,
    gradient_checkpointing: bool = False,
    workers: int = 0,
    seed: int = 0,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    checkpoint_every: int = 500,
) -> Path:
    """Train a generator on the codes of a cache; the same call again goes on where it was interrupted.

    Every step packs all levels of `batch_size` pictures; the finished directory holds the averaged (EMA) weights, the
    scheduler and the log. An interrupted training that is resumed ends with the same bytes as one that was not.

    Args:
        cache: A code cache, or the path of one.
        out: Directory to make; `MaskGitTransformer.from_pretrained` reads it.
        preset: Size of the transformer, see `presets.PRESETS`.
        hidden_size: Width, instead of the preset's.
        depth: Number of blocks, instead of the preset's.
        num_heads: Attention heads, instead of the preset's.
        steps: Optimiser steps in all.
        batch_size: Pictures per step, over all processes.
        lr: Peak learning rate of AdamW.
        lr_decay: "cosine" or "constant", after the warm-up.
        warmup: Steps of linear warm-up; a twentieth of `steps`, at most 1,000, by default.
        class_dropout: Share of pictures whose class is withheld, for guidance.
        corruption: Largest share of a picture's codes that lie to the prefix latent.
        mask_law: Law of the mask ratios, "cosine", "arccos" or "linear"; sampling takes the same.
        ema_decay: Decay of the averaged weights, reached gradually.
        gradient_checkpointing: Recompute blocks in the backward pass: less memory, a third more work.
        workers: Processes that read the cache ahead; 0 reads in this one.
        seed: Seed of the weights, the order and every draw.
        tokenizer: Directory of the tokenizer that is to decode what will be sampled; a cache of another one's codes is
            refused. Nothing of it but its fingerprint is read; None trusts the cache.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" (mixed precision), or "auto": bfloat16 on CUDA, float32 elsewhere.
        overwrite: Start anew over whatever `out` holds.
        checkpoint_every: Steps between checkpoints.

    Returns:
        `out`.

    Raises:
        CodaError: A bad setting, a damaged cache or one of another tokenizer, or `out` holds something else.
    """
    accelerator = start_accelerator(device, dtype)
    cache = cache if isinstance(cache, CodeCache) else CodeCache(cache)
    if tokenizer is not None and saved_fingerprint(tokenizer) != cache.tokenizer_fingerprint:
        raise CodaError(
            f"{cache.path} holds codes of the tokenizer {cache.tokenizer_fingerprint}, not of {tokenizer}, which is "
            f"{saved_fingerprint(tokenizer)}: tokenize the data set with it, or give another cache"
        )
    size = resolve_preset(preset, hidden_size, depth, num_heads)
    settings = _Settings(
        tokenizer=cache.tokenizer_fingerprint,
        cache=_digest(cache.manifest),
        hidden_size=size.hidden_size,
        depth=size.depth,
        num_heads=size.num_heads,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        lr_decay=lr_decay,
        warmup=min(1_000, steps // 20) if warmup is None else warmup,
        class_dropout=class_dropout,
        corruption=corruption,
        mask_law=mask_law,
        ema_decay=ema_decay,
        seed=seed,
        precision=accelerator.mixed_precision,
    )
    if checkpoint_every < 1:
        raise CodaError(f"checkpoint_every {checkpoint_every} must be at least 1")
    check_batch_size(batch_size)  # a batch that cannot be shared out is refused before anything is written
    with accelerator.main_process_first():
        run = RunDirectory(out, "generator", asdict(settings), overwrite=overwrite and accelerator.is_main_process)
    if not run.complete:
        transformer = _new_transformer(cache, settings)
        if gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        _train(transformer, cache, settings, run, accelerator, workers, checkpoint_every)
    return run.path


@dataclass(frozen=True)
class _Settings:
    """Everything that changes the result; see `train_maskgit`."""

    tokenizer: str
    cache: str
    hidden_size: int
    depth: int
    num_heads: int
    steps: int
    batch_size: int
    lr: float
    lr_decay: str
    warmup: int
    class_dropout: float
    corruption: float
    mask_law: str
    ema_decay: float
    seed: int
    precision: str

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise CodaError(f"steps {self.steps} and batch_size {self.batch_size} must be at least 1")
        for name in ("class_dropout", "corruption", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise CodaError(f"{name} {getattr(self, name)} is not within [0, 1]")
        mask_ratio(torch.tensor(0.5), self.mask_law)  # a wrong name is refused now, not at the first step
        learning_rate_at(self.warmup, self.lr, self.warmup, self.steps, self.lr_decay)


def _train(
    transformer: MaskGitTransformer,
    cache: CodeCache,
    settings: _Settings,
    run: RunDirectory,
    accelerator: Accelerator,
    workers: int,
    checkpoint_every: int,
) -> None:
    """The training loop, from the newest checkpoint to the finished directory."""
    fused = accelerator.device.type in ("cpu", "cuda")
    objective, optimizer = accelerator.prepare(
        MaskedCodeObjective(transformer), new_optimizer(transformer, settings.lr, fused)
    )
    average = new_average(transformer, settings.ema_decay)
    start = restore(run.latest(), transformer, average, optimizer)
    if accelerator.is_main_process:
        run.forget_log_after(start)

    process, processes = rank_and_world_size()
    local = settings.batch_size // processes
    first = process * local
    batches = ShuffledBatches(cache, settings.batch_size, settings.seed, (process, processes))
    loader = DataLoader(batches, batch_size=None, sampler=range(start, settings.steps), num_workers=workers)
    objective.train()
    with progress("Training the generator", total=settings.steps, unit="steps", completed=start) as bar:
        for step, (codes, labels) in zip(range(start, settings.steps), loader, strict=True):
            draw = draw_training(
                cache.layout,
                settings.batch_size,
                step_generator(settings.seed, step),
                settings.mask_law,
                settings.corruption,
                settings.class_dropout,
            )
            draw = draw.rows(first, first + local).to(accelerator.device)
            lr = learning_rate_at(step, settings.lr, settings.warmup, settings.steps, settings.lr_decay)
            for group in optimizer.param_groups:
                group["lr"] = lr
            cost = objective(codes.to(accelerator.device), labels.to(accelerator.device), draw)
            accelerator.backward(cost.loss)
            gradient = accelerator.clip_grad_norm_(objective.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(transformer)

            done = step + 1
            shown: dict[str, Any] = {}
            if done % _LOG_EVERY == 0 or done == settings.steps:
                shown = {"loss": _finite(float(cost.loss.detach()), done)}
                if accelerator.is_main_process:
                    levels = {f"loss_level_{i}": loss for i, loss in enumerate(cost.level_losses.tolist())}
                    run.log(done, **shown, **levels, gradient=float(gradient), lr=lr)
            if done % checkpoint_every == 0 and done < settings.steps and accelerator.is_main_process:
                run.save(done, checkpoint_tensors(transformer, average, optimizer))
            bar.advance(**shown)

    if accelerator.is_main_process:
        run.finish(lambda folder: _write(folder, average.module, settings.mask_law))
    accelerator.wait_for_everyone()


def _digest(manifest: dict[str, Any]) -> str:
    """What makes one cache another: a hash of its manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _new_transformer(cache: CodeCache, settings: _Settings) -> MaskGitTransformer:
    """A transformer for the cache's codes, its weights drawn from the seed."""
    seen = sorted(set(cache.labels.tolist()) - {-1})
    if seen and not 0 <= seen[0] <= seen[-1] < cache.num_classes:
        raise CodaError(f"{cache.path} has labels {seen[0]} to {seen[-1]} but says it has {cache.num_classes} classes")
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
        transformer.start_from_values(cache.value_table)
    return transformer


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise CodaError(f"the loss is {loss} at step {step}: the training has diverged; a lower lr may help")
    return loss


def _write(folder: Path, transformer: torch.nn.Module, mask_law: str) -> None:
    """The finished directory: weights and config of the transformer, and how to sample from it."""
    assert isinstance(transformer, MaskGitTransformer)
    transformer.save_pretrained(folder)
    MaskGitScheduler(
        num_inference_steps=max(16, transformer.layout.num_levels), mask_schedule=mask_law
    ).save_pretrained(folder / "scheduler")
