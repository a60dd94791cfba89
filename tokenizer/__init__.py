"""Images ⇄ codes: a continuous VAE adapted into a discrete tokenizer. Imports none of the other packages."""

from typing import TYPE_CHECKING

from .foundation.lazy import lazy_package
from .foundation.torchvision_compat import declare_before_import

if TYPE_CHECKING:
    from diffusers import ConfigMixin, ModelMixin

    from .adapt import adapt
    from .code_cache import CodeCache, export_cache, import_npy, merge_caches
    from .foundation.errors import CodaError
    from .layout import CodeLayout, default_sides
    from .official import quantizer_from_official, tokenizer_from_official
    from .quantizer.residual_quantizer import QuantizerOutput, ResidualQuantizer
    from .tokenize_dataset import TokenizeSummary, tokenize_dataset
    from .tokenizer import CodaTokenizer
    from .train_vae import train_vae
    from .vae.continuous_vae import ContinuousVAE
    from .vae.load import load_vae

declare_before_import()

__all__ = lazy_package(
    __name__,
    {
        # diffusers looks for the mixins in the package that model_index.json names for a component.
        "diffusers": ["ConfigMixin", "ModelMixin"],
        ".adapt": ["adapt"],
        ".code_cache": ["CodeCache", "export_cache", "import_npy", "merge_caches"],
        ".foundation.errors": ["CodaError"],
        ".layout": ["CodeLayout", "default_sides"],
        ".official": ["quantizer_from_official", "tokenizer_from_official"],
        ".quantizer.residual_quantizer": ["QuantizerOutput", "ResidualQuantizer"],
        ".tokenize_dataset": ["TokenizeSummary", "tokenize_dataset"],
        ".tokenizer": ["CodaTokenizer"],
        ".train_vae": ["train_vae"],
        ".vae.continuous_vae": ["ContinuousVAE"],
        ".vae.load": ["load_vae"],
    },
)
