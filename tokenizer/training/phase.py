"""Parts that the phases of `adapt` share: resumption, checkpoints, the averaged weights.

The loops themselves are in `adapt` and `cached_latents`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from ..images import ImageSource
from ..settings import AdaptSettings, RunOptions
from .discriminator import DiscriminatorTrainer
from .monitoring import Monitor
from .run_directory import Checkpoint, RunDirectory
from .trainable_tokenizer import TrainableTokenizer

_CHECKPOINT_EVERY = 100  # steps


@dataclass(frozen=True)
class Training:
    """One run of `adapt`: what is trained, on what, and where. `settings` are resolved."""

    tokenizer: TrainableTokenizer
    source: ImageSource
    directory: RunDirectory
    checkpoint: Checkpoint | None
    settings: AdaptSettings
    run: RunOptions
    monitor: Monitor
    accelerator: Accelerator


class Phase:
    """One phase of a training, with an optimizer and an average of the weights of its own.

    It goes on from the training's checkpoint if that is of this phase; otherwise it saves one, so that nothing before
    it has to be done again.

    Args:
        training: The training.
        part: What is trained, as in `TrainableTokenizer.train_only`.
        before: Steps of the phases before it.
        steps: Steps of this one.
        module: What the loop calls; the tokenizer or a part of it.
        discriminator: The discriminator that is trained beside it, if any.

    Attributes:
        model: `module`, ready for several processes.
        start: Steps of this phase that are done.
    """

    def __init__(
        self,
        training: Training,
        part: str,
        before: int,
        steps: int,
        module: nn.Module,
        discriminator: DiscriminatorTrainer | None = None,
    ) -> None:
        self._training, self._before, self._steps, self._discriminator = training, before, steps, discriminator
        tokenizer, checkpoint = training.tokenizer, training.checkpoint
        tokenizer.train_only(part)
        self.model = training.accelerator.prepare(module)
        self.optimizer = tokenizer.optimizer(training.settings)
        self.start = 0
        if checkpoint is not None and checkpoint.step >= before:
            self.start = checkpoint.step - before
            self.optimizer.load_state_tensors("tokenizer", checkpoint.tensors, updates=self.start)
            if discriminator is not None:
                discriminator.load_state_tensors(checkpoint.tensors, self.start)
        else:
            self._save(0)
        if not before:
            training.monitor.begin(self.reconstruct, tokenizer.quantizer)

    def checkpoint(self, done: int) -> None:
        """Save a checkpoint after `done` steps of this phase, if one is due."""
        if done % (self._training.run.checkpoint_every or _CHECKPOINT_EVERY) == 0 and done < self._steps:
            self._save(done)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstructions of images, with the averaged weights."""
        with self.optimizer.averaged(), self._training.accelerator.autocast():
            return self._training.tokenizer.reconstruct(images)

    def _save(self, done: int) -> None:
        tensors = self.optimizer.state_tensors("tokenizer") | self._training.monitor.state_tensors()
        if self._discriminator is not None:
            tensors |= self._discriminator.state_tensors()
        self._training.directory.save(self._before + done, tensors, self._training.tokenizer.normalization)
