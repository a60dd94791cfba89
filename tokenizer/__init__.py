"""Images ⇄ codes: a continuous VAE adapted into a discrete tokenizer. Knows nothing of what is built on it."""

# Before anything that imports torchvision on the side (diffusers does, through peft and transformers).
from . import torchvision_compat  # noqa: F401  isort: skip

# diffusers looks for the mixin in the module that model_index.json names for a component.
from diffusers import ConfigMixin, ModelMixin  # isort: skip

from .adapt import adapt
from .code_cache import CodeCache, export_cache, import_npy, merge_caches
from .errors import CodaError
from .layout import CodeLayout, SizedCodes, default_sides
from .official import quantizer_from_official, tokenizer_from_official
from .quantizer import QuantizerOutput, ResidualQuantizer
from .tokenize_dataset import TokenizeSummary, tokenize_dataset
from .tokenizer import CodaTokenizer
from .train_vae import train_vae
from .vae import ContinuousVAE, load_vae

__all__ = [
    "CodaError",
    "CodaTokenizer",
    "CodeCache",
    "CodeLayout",
    "ConfigMixin",
    "ContinuousVAE",
    "ModelMixin",
    "QuantizerOutput",
    "ResidualQuantizer",
    "SizedCodes",
    "TokenizeSummary",
    "adapt",
    "default_sides",
    "export_cache",
    "import_npy",
    "load_vae",
    "merge_caches",
    "quantizer_from_official",
    "tokenize_dataset",
    "tokenizer_from_official",
    "train_vae",
]
