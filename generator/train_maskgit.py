"""Training the masked transformer from a code cache alone: no VAE is loaded, no pixel is seen."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.determinism import derived_seed, epoch_order, step_generator
from coda.tokenizer.errors import CodaError
from coda.tokenizer.progress import progress
from coda.tokenizer.run_directory import Checkpoint, RunDirectory

from .masking import draw_training
from .objective import MaskedCodeObjective
from .presets import Preset, resolve_preset
from .scheduler import MaskGitScheduler
from .schedules import learning_rate_at
from .transformer import MaskGitTransformer

_LOG_EVERY = 20
_BETAS, _WEIGHT_DECAY, _LARGEST_GRADIENT = (0.9, 0.96), 0.03, 1.0  # MaskGIT's optimiser, with clipping


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
        device: "auto", "cpu", "cuda", "cuda:1", …
        dtype: "float32", "bfloat16" (mixed precision), or "auto": bfloat16 on CUDA, float32 elsewhere.
        overwrite: Start anew over whatever `out` holds.
        checkpoint_every: Steps between checkpoints.

    Returns:
        `out`.

    Raises:
        CodaError: A bad setting, a damaged cache, or `out` holds something else.
    """
    if min(steps, batch_size, checkpoint_every) < 1:
        raise CodaError("steps, batch_size and checkpoint_every must be at least 1")
    for name, share in (("class_dropout", class_dropout), ("corruption", corruption), ("ema_decay", ema_decay)):
        if not 0 <= share <= 1:
            raise CodaError(f"{name} {share} is not within [0, 1]")
    cache = cache if isinstance(cache, CodeCache) else CodeCache(cache)
    size = resolve_preset(preset, hidden_size, depth, num_heads)
    warmup = min(1_000, steps // 20) if warmup is None else warmup
    accelerator = _accelerator(device, dtype)
    if batch_size % accelerator.num_processes:
        raise CodaError(f"batch_size {batch_size} does not divide among {accelerator.num_processes} processes")
    settings = {
        "cache": _digest(cache.manifest),
        "hidden_size": size.hidden_size,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "lr_decay": lr_decay,
        "warmup": warmup,
        "class_dropout": class_dropout,
        "corruption": corruption,
        "mask_law": mask_law,
        "ema_decay": ema_decay,
        "seed": seed,
        "dtype": accelerator.mixed_precision,
    }
    with accelerator.main_process_first():
        run = RunDirectory(out, "generator", settings, overwrite=overwrite and accelerator.is_main_process)
    if run.complete:
        return run.path

    transformer = _new_transformer(cache, size, seed)
    if gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(_parameter_groups(transformer), lr=lr, betas=_BETAS, fused=_fusable(accelerator))
    objective, optimizer = accelerator.prepare(MaskedCodeObjective(transformer), optimizer)
    average = AveragedModel(transformer, multi_avg_fn=_averaging(ema_decay))
    start = _restore(run.latest(), transformer, average, optimizer)
    if accelerator.is_main_process:
        run.forget_log_after(start)

    local = batch_size // accelerator.num_processes
    first = accelerator.process_index * local
    stream = _CodeStream(cache, batch_size, seed, first, first + local)
    loader = DataLoader(stream, batch_size=None, sampler=range(start, steps), num_workers=workers)
    objective.train()
    with progress("Training the generator", total=steps, unit="steps", completed=start) as bar:
        for step, (codes, labels) in zip(range(start, steps), loader, strict=True):
            generator = step_generator(seed, step)
            draw = draw_training(cache.layout, batch_size, generator, mask_law, corruption, class_dropout)
            draw = draw.rows(first, first + local).to(accelerator.device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, lr, warmup, steps, lr_decay)
            cost = objective(codes.to(accelerator.device), labels.to(accelerator.device), draw)
            accelerator.backward(cost.loss)
            gradient = accelerator.clip_grad_norm_(objective.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(transformer)

            done = step + 1
            shown = {}
            if done % _LOG_EVERY == 0 or done == steps:
                shown = {"loss": _finite(float(cost.loss), done)}
                if accelerator.is_main_process:
                    levels = {f"loss_level_{i}": loss for i, loss in enumerate(cost.level_losses.tolist())}
                    run.log(done, **shown, **levels, gradient=float(gradient), lr=optimizer.param_groups[0]["lr"])
            if done % checkpoint_every == 0 and done < steps and accelerator.is_main_process:
                run.save(done, _tensors(transformer, average, optimizer))
            bar.advance(**shown)

    if accelerator.is_main_process:
        run.finish(lambda folder: _write(folder, average.module, mask_law))
    accelerator.wait_for_everyone()
    return run.path


class _CodeStream(Dataset):
    """What each step reads: rows [first, last) of its batch, in an order that (seed, step) alone decides."""

    def __init__(self, cache: CodeCache, batch_size: int, seed: int, first: int, last: int) -> None:
        self.cache, self.batch_size, self.seed, self.first, self.last = cache, batch_size, seed, first, last
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (B, T) int64 and labels (B,) of one step; a batch may end one epoch and begin the next."""
        places = range(step * self.batch_size + self.first, step * self.batch_size + self.last)
        return self.cache.batch(torch.tensor([self._item(place) for place in places]))

    def _item(self, place: int) -> int:
        """Which item stands at `place` of the endless sequence of epochs."""
        epoch, within = divmod(place, len(self.cache))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, len(self.cache))
        return int(self._order[within])


def _accelerator(device: str, dtype: str) -> Accelerator:
    """Device, precision and processes; several trainings of one process may differ in them."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise CodaError(f"dtype {dtype!r} is none of auto, float32, bfloat16")
    if PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise CodaError(f"device {device!r}: this machine or this build of torch has no CUDA")
        torch.cuda.set_device(torch.device(device))
    elif device not in ("auto", "cpu", "mps"):
        raise CodaError(f"device {device!r} is none of auto, cpu, cuda, cuda:N, mps")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    precision = "bf16" if dtype == "bfloat16" or (dtype == "auto" and on_cuda) else "no"
    return Accelerator(cpu=device == "cpu", mixed_precision=precision)


def _digest(manifest: dict[str, Any]) -> str:
    """What makes one cache another: a hash of its manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _new_transformer(cache: CodeCache, size: Preset, seed: int) -> MaskGitTransformer:
    """A transformer for the cache's codes, its weights drawn from `seed`."""
    seen = sorted({label for label in cache.labels.tolist() if label >= 0})
    names = cache.manifest.get("class_names")
    num_classes = max([*seen, len(names or ()) - 1]) + 1 if seen or names else 0
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed("weights", seed))
        transformer = MaskGitTransformer(
            sides=[list(side) for side in cache.layout.sides],
            codebook_size=cache.layout.codebook_size,
            latent_channels=cache.value_table.shape[1],
            num_classes=num_classes,
            hidden_size=size.hidden_size,
            depth=size.depth,
            num_heads=size.num_heads,
            class_labels=seen,
            class_names=names,
            tokenizer_fingerprint=cache.manifest.get("tokenizer_fingerprint"),
        )
    transformer.set_value_table(cache.value_table)
    return transformer


def _parameter_groups(transformer: MaskGitTransformer) -> list[dict[str, Any]]:
    """Weight decay for the matrices of the blocks; none for embeddings and norms."""
    decayed, free = [], []
    for name, parameter in transformer.named_parameters():
        (decayed if parameter.ndim == 2 and "embedding" not in name else free).append(parameter)
    return [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]


def _fusable(accelerator: Accelerator) -> bool:
    return accelerator.device.type in ("cpu", "cuda")


def _averaging(decay: float) -> Any:
    """EMA whose decay grows to `decay`: an average over about a tenth of a young run."""

    @torch.no_grad()
    def update(averages: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor | int) -> None:
        young = (1 + int(updates)) / (10 + int(updates))
        torch._foreach_lerp_(averages, current, 1 - min(decay, young))

    return update


def _tensors(transformer: torch.nn.Module, average: AveragedModel, optimizer: Any) -> dict[str, torch.Tensor]:
    """All that a resumed run needs; what is random follows from seed and step."""
    tensors = {f"model.{name}": tensor for name, tensor in transformer.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def _restore(
    checkpoint: Checkpoint | None, transformer: torch.nn.Module, average: AveragedModel, optimizer: Any
) -> int:
    """Put everything back as it was; returns the steps already done."""
    if checkpoint is None:
        return 0
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in checkpoint.tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    transformer.load_state_dict(parts["model"])
    average.load_state_dict(parts["average"])
    state = optimizer.state_dict()
    for name, tensor in parts["optimizer"].items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
    return checkpoint.step


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise CodaError(f"the loss is {loss} at step {step}: the training has diverged; a lower lr may help")
    return loss


def _write(folder: Path, transformer: torch.nn.Module, mask_law: str) -> None:
    """The finished directory: weights and config of the transformer, and how to sample from it."""
    assert isinstance(transformer, MaskGitTransformer)
    transformer.save_pretrained(folder)
    MaskGitScheduler(num_inference_steps=max(16, transformer.layout.num_levels), mask_law=mask_law).save_pretrained(
        folder / "scheduler"
    )
