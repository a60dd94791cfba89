from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from coda.benchmarks.features.distances import Statistics, frechet_distance
from coda.benchmarks.features.extractors import (
    INCEPTION_FILE,
    EfficientNetLite0Extractor,
    InceptionExtractor,
    load_extractor,
)
from coda.tokenizer import CodaError

data = pytest.importorskip("skimage.data")
inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0Extractor:
    return EfficientNetLite0Extractor()


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file with the published shapes: the published weights are not available everywhere."""
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    torch.save({}, path)
    network = inception.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        weights = network("random", ["2048"], feature_extractor_weights_path=str(path)).state_dict()
    torch.save(weights, path)
    return path


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def _images(*arrays: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def test_the_offline_extractor_knows_a_cat(lite: EfficientNetLite0Extractor) -> None:
    found = lite(_images(data.chelsea()[:, 60:360]))
    assert found.pooled.shape == (1, 1280)
    assert found.logits is not None and found.logits.shape == (1, 1000)
    assert int(found.logits.argmax()) in {281, 282, 285}  # tabby, tiger cat, Egyptian cat


def test_the_offline_distance_ranks_damage(lite: EfficientNetLite0Extractor) -> None:
    cuts = [data.astronaut()[i : i + 96, j : j + 96] for i in range(0, 400, 150) for j in range(0, 400, 150)]
    clean = _images(*cuts)
    reference = Statistics.of(lite(clean).pooled[:, :128])  # a part of the features is quicker
    distances = []
    for spread in (0, 10, 60):
        noisy = (clean + spread * torch.randn(clean.shape)).clamp(0, 255).to(torch.uint8)
        distances.append(frechet_distance(Statistics.of(lite(noisy).pooled[:, :128]), reference))
    assert distances[0] == pytest.approx(0, abs=0.01)
    assert distances[0] < distances[1] < distances[2]


def test_no_figure_of_the_offline_extractor_is_called_fid(lite: EfficientNetLite0Extractor) -> None:
    names = vars(lite.figure_names).values()
    assert all(name.endswith("efficientnet_lite0") and not name.startswith("fid") for name in names)


def test_inception_gives_pooled_logits_and_spatial_features(random_inception: Path) -> None:
    extractor = InceptionExtractor(random_inception)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    found = extractor(images)
    assert found.pooled.shape == (2, 2048)
    assert found.logits is not None and found.logits.shape == (2, 1008)
    assert found.spatial is not None and found.spatial.shape == (2, 17 * 17 * 7)
    # The features of an image do not depend on the batch.
    alone = extractor(images[1:])
    torch.testing.assert_close(alone.pooled[0], found.pooled[1], rtol=1e-4, atol=1e-5)
    assert alone.spatial is not None
    torch.testing.assert_close(alone.spatial[0], found.spatial[1], rtol=1e-4, atol=1e-5)


def test_auto_takes_what_is_there(empty_hub: Path) -> None:
    assert load_extractor("auto", "cpu").name == "efficientnet_lite0"


def test_inception_without_weights_says_where_to_put_them(empty_hub: Path) -> None:
    with pytest.raises(CodaError, match="use the extractor efficientnet_lite0") as raised:
        load_extractor("inception", "cpu")
    assert str(empty_hub / INCEPTION_FILE) in str(raised.value)


def test_other_weights_are_not_inception(empty_hub: Path, random_inception: Path) -> None:
    (empty_hub / INCEPTION_FILE).write_bytes(random_inception.read_bytes()[:1000])
    with pytest.raises(CodaError, match="not the published file"):
        load_extractor("auto", "cpu")
