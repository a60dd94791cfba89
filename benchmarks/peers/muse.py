"""The transformer of muse-maskgit-pytorch (the extra `peers`), a reimplementation of Muse (arXiv 2301.00704)."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import torch
from PIL import ImageFile
from torch import nn

from coda.tokenizer.foundation.errors import CodaError

from .peer import FlatPeer, PeerSetup

_CONDITION = "classes, not text"  # what its table of text encoders calls ours
_MLP_RATIO = 4  # its own default: a gated MLP of 8/3 of the width


class MusePeer(FlatPeer):
    """`MaskGitTransformer` of muse-maskgit-pytorch, with a class embedding in place of the text.

    A learned embedding of the class is the only token that its cross-attention sees; for no class it is zero, which
    the package masks out. Its masks, its loss and its sequence of T codes are as the package has them. It is sampled
    with our sampler, since the package's `generate` takes texts and a square grid only.

    Raises:
        CodaError: If the package is not installed or does not load.
    """

    title = "muse-maskgit-pytorch"

    def __init__(self, setup: PeerSetup) -> None:
        if (problem := muse_problem()) is not None:
            raise CodaError(problem)
        from muse_maskgit_pytorch import MaskGitTransformer, t5

        super().__init__(setup)
        settings, layout = setup.settings, setup.layout
        # It asks for the width of its text encoder, and would download a configuration to know it.
        t5.T5_CONFIGS[_CONDITION] = {"config": SimpleNamespace(d_model=settings.width)}
        self.class_embedding = nn.Embedding(max(1, setup.num_classes), settings.width)
        self.model = MaskGitTransformer(
            num_tokens=layout.codebook_size,
            seq_len=layout.num_tokens,
            dim=settings.width,
            depth=settings.depth,
            heads=settings.heads,
            dim_head=settings.width // settings.heads,
            ff_mult=_MLP_RATIO,
            flash=False,  # what it calls so is attention in chunks in Python, slower for short sequences
            t5_name=_CONDITION,
        )
        # Parts that its forward pass never reaches would count as parameters.
        self.model.norm = self.model.self_cond_to_init_embed = nn.Identity()

    def features(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, K) of codes (B, T), K where masked."""
        none = labels == self.none
        embedded = self.class_embedding(labels.masked_fill(none, 0)).masked_fill(none[:, None], 0)
        return self.model(codes, text_embeds=embedded[:, None])


def muse_problem() -> str | None:
    """Why muse-maskgit-pytorch cannot be used, in one line; None if it can."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own annotations
            import muse_maskgit_pytorch  # noqa: F401
    except Exception as error:  # its imports may also fail on versions of its own requirements
        return f"muse-maskgit-pytorch does not load: pip install 'coda[peers]' ({error})"
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before  # it lets broken images pass, for the whole process
    return None
