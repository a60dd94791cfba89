from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from coda.benchmarks.image_sets.adm_npz import AdmArchive, write_npz
from coda.benchmarks.image_sets.image_set import open_image_set
from coda.tokenizer.foundation.errors import CodaError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (7, 3, 6, 5), dtype=torch.uint8)


def test_numpy_reads_what_is_written(images: torch.Tensor, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "samples.npz", images.split(3), 7, labels=[1, 2, 3, 4, 5, 6, 7])
    with np.load(path, allow_pickle=False) as found:
        assert found["arr_0"].dtype == np.uint8
        assert np.array_equal(found["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert found["arr_1"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_round_trip_in_other_batches(images: torch.Tensor, tmp_path: Path) -> None:
    archive = AdmArchive(write_npz(tmp_path / "samples.npz", [images], 7, labels=None))
    batches = list(archive.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    assert torch.equal(torch.cat(batches), images)
    assert archive.labels is None


def test_a_compressed_reference_with_statistics(images: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    mu, sigma = np.arange(4, dtype=np.float32), np.eye(4, dtype=np.float64)
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy(), "mu": mu, "sigma": sigma, "mu_s": mu[:2]}
    np.savez_compressed(path, **arrays, sigma_s=np.eye(2))
    archive = AdmArchive(path)
    assert len(archive) == 7
    assert torch.equal(torch.cat(list(archive.batches(4))), images)
    assert archive.pooled_statistics is not None and archive.spatial_statistics is not None
    assert archive.pooled_statistics.mu.tolist() == [0, 1, 2, 3]
    assert archive.spatial_statistics.sigma.shape == (2, 2)


def test_statistics_alone_are_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    archive = AdmArchive(tmp_path / "stats.npz")
    assert len(archive) == 0
    assert archive.pooled_statistics is not None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "holds other; expected"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "expected uint8"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "expected uint8"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "do not match"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        ({"arr_0": np.array([{}, {}], dtype=object)}, "expected uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "expected uint8"),
    ],
)
def test_other_content_is_one_clear_line(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(CodaError, match=message) as raised:
        AdmArchive(tmp_path / "other.npz")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shape", [(-2, 4, 4, 3), (10**12, 4, 4, 3), (2, 10**9, 10**9, 3)])
def test_an_absurd_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with pytest.raises(CodaError, match="expected uint8"):
        AdmArchive(tmp_path / "a.npz")


def test_labels_that_are_not_labels_are_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.zeros(3))
    assert "not one integer per image" in open_image_set(tmp_path / "a.npz").description["labels"]


def test_no_file_and_no_archive(tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="no such file"):
        AdmArchive(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(CodaError, match="cannot be read"):
        AdmArchive(tmp_path / "text.npz")


def test_a_damaged_image_is_found(tmp_path: Path) -> None:
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
    path = write_npz(tmp_path / "samples.npz", [images], 40, labels=None)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CodaError, match="damaged"):
        list(AdmArchive(path).batches(8))


def test_an_interrupted_write_leaves_no_file(images: torch.Tensor, tmp_path: Path) -> None:
    def interrupted():
        yield images
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_npz(tmp_path / "samples.npz", interrupted(), 14, labels=None)
    assert list(tmp_path.iterdir()) == []
