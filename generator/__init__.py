"""Codes ⇄ classes: a masked transformer over residual codes. Knows integers and the value table, never a VAE."""

# Before diffusers: it lets a torchvision that does not fit torch be imported.
import coda.tokenizer  # noqa: F401  isort: skip

# diffusers looks for the mixins in the module that model_index.json names for a component.
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin  # isort: skip

from .presets import PRESETS, Preset
from .sampling import SamplingStep, sample_codes
from .scheduler import MaskGitScheduler
from .train_maskgit import train_maskgit
from .transformer import MaskGitOutput, MaskGitTransformer

__all__ = [
    "PRESETS",
    "ConfigMixin",
    "MaskGitOutput",
    "MaskGitScheduler",
    "MaskGitTransformer",
    "ModelMixin",
    "Preset",
    "SamplingStep",
    "SchedulerMixin",
    "sample_codes",
    "train_maskgit",
]
