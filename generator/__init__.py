"""Codes ⇄ classes: a masked transformer over residual codes. Knows integers and the value table, never a VAE."""

from typing import TYPE_CHECKING

from coda.tokenizer.foundation.lazy import lazy_package

if TYPE_CHECKING:
    from diffusers import ConfigMixin, ModelMixin, SchedulerMixin

    from .presets import PRESETS
    from .sampling import SamplingStep, sample_codes
    from .scheduler import MaskGitScheduler
    from .train_maskgit import train_maskgit
    from .transformer import MaskGitOutput, MaskGitTransformer

__all__ = lazy_package(
    __name__,
    {
        # diffusers looks for the mixins in the package that model_index.json names for a component.
        "diffusers": ["ConfigMixin", "ModelMixin", "SchedulerMixin"],
        ".presets": ["PRESETS"],
        ".sampling": ["SamplingStep", "sample_codes"],
        ".scheduler": ["MaskGitScheduler"],
        ".train_maskgit": ["train_maskgit"],
        ".transformer": ["MaskGitOutput", "MaskGitTransformer"],
    },
)
