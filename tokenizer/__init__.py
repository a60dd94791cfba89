"""Images ⇄ codes: a continuous VAE adapted into a discrete tokenizer. Knows nothing of what is built on it."""

# Before anything that imports torchvision on the side (diffusers does, through peft and transformers).
from . import torchvision_compat  # noqa: F401  isort: skip

# diffusers looks for the mixin in the module that model_index.json names for a component.
from diffusers import ConfigMixin, ModelMixin  # isort: skip

from .errors import CodaError
from .layout import CodeLayout, default_sides
from .quantizer import QuantizerOutput, ResidualQuantizer

__all__ = [
    "CodaError",
    "CodeLayout",
    "ConfigMixin",
    "ModelMixin",
    "QuantizerOutput",
    "ResidualQuantizer",
    "default_sides",
]
