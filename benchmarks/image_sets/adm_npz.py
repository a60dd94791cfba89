"""The `.npz` files of ADM's evaluator (Dhariwal & Nichol 2021): writing samples, reading references.

A file has the images `arr_0`, uint8 (N, H, W, 3), and optionally the labels `arr_1` (N,). A reference file may also
have statistics of Inception features over a *larger* set than its images: `mu`, `sigma` of the pooled features, `mu_s`,
`sigma_s` of the spatial ones. Images are read batch by batch; nothing is unpickled.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from coda.tokenizer.foundation.atomic_io import write_atomically
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images.source import MAX_PIXELS

from ..features.distances import Statistics

_MOST_FEATURES = 16384  # of statistics; Inception has 2048


class AdmArchive:
    """An `.npz` with images, statistics, or both.

    Args:
        path: The file.

    Raises:
        CodaError: If there is no such file, it is not an `.npz`, or it has neither images nor statistics.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CodaError(f"{self.path}: no such file")
        try:
            with zipfile.ZipFile(self.path) as archive:
                self.names = {name.removesuffix(".npy") for name in archive.namelist()}
            self.shape = self._image_shape() if "arr_0" in self.names else None
            self.label_problem: str | None = None
            self.labels = self._labels()
            self.pooled_statistics = self._statistics("mu", "sigma")
            self.spatial_statistics = self._statistics("mu_s", "sigma_s")
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise CodaError(f"{self.path} cannot be read as an .npz of plain arrays: {error}") from error
        if self.shape is None and self.pooled_statistics is None:
            names = ", ".join(sorted(self.names)) or "nothing"
            raise CodaError(f"{self.path} holds {names}; expected images (arr_0) or statistics (mu, sigma)")

    def __len__(self) -> int:
        return 0 if self.shape is None else self.shape[0]

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """The images in order, uint8 (B, 3, H, W).

        Raises:
            CodaError: If the file is truncated, or a checksum is wrong.
        """
        assert self.shape is not None
        count, height, width, channels = self.shape
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
                _read_header(file)
                for start in range(0, count, batch_size):
                    here = min(batch_size, count - start)
                    size = here * height * width * channels
                    content = file.read(size)
                    if len(content) != size:
                        raise CodaError(f"{self.path} is truncated: it has fewer than its {count} images")
                    images = np.frombuffer(content, np.uint8).reshape(here, height, width, channels)
                    yield torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous()
        except (zipfile.BadZipFile, EOFError) as error:
            raise CodaError(f"{self.path} is damaged: {error}") from error

    def _image_shape(self) -> tuple[int, int, int, int]:
        shape, dtype, left = self._declared("arr_0")
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or min(shape) < 1 or math.prod(shape) != left:
            raise ValueError(f"arr_0 is {dtype} {shape}, {left} bytes; expected uint8 (N, H, W, 3)")
        if shape[1] * shape[2] > MAX_PIXELS:
            raise ValueError(f"its images have {shape[1]}x{shape[2]} pixels, more than {MAX_PIXELS:,}")
        return shape

    def _labels(self) -> torch.Tensor | None:
        """`arr_1` if it can be labels: integers, one per image."""
        if self.shape is None or "arr_1" not in self.names:
            return None
        shape, dtype, _ = self._declared("arr_1")
        if shape != self.shape[:1] or not np.issubdtype(dtype, np.integer):
            self.label_problem = f"arr_1 is {dtype} {shape}, not one integer per image"
            return None
        return torch.from_numpy(self._load("arr_1").astype(np.int64)).clamp_min(-1)

    def _statistics(self, mu: str, sigma: str) -> Statistics | None:
        if not {mu, sigma} <= self.names:
            return None
        (mu_shape, *_), (sigma_shape, *_) = self._declared(mu), self._declared(sigma)
        if len(mu_shape) != 1 or sigma_shape != 2 * mu_shape or mu_shape[0] > _MOST_FEATURES:
            raise ValueError(f"{mu} {mu_shape} and {sigma} {sigma_shape} do not match")
        found = Statistics(self._load(mu).astype(np.float64), self._load(sigma).astype(np.float64))
        if not (np.isfinite(found.mu).all() and np.isfinite(found.sigma).all()):
            raise ValueError(f"{mu} or {sigma} is not finite")
        return found

    def _declared(self, name: str) -> tuple[Any, np.dtype, int]:
        """Shape, dtype and size in bytes of an array, without loading it."""
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            shape, fortran_order, dtype = _read_header(file)
            if fortran_order and len(shape) > 2:
                raise ValueError(f"{name} is in Fortran order")
            return shape, dtype, archive.getinfo(f"{name}.npy").file_size - file.tell()

    def _load(self, name: str) -> np.ndarray:
        with np.load(self.path, allow_pickle=False) as file:
            return file[name]


def write_npz(path: str | Path, batches: Iterable[torch.Tensor], count: int, labels: Sequence[int] | None) -> Path:
    """Write images in the layout of ADM's evaluator.

    Args:
        path: The `.npz` to write.
        batches: Images (B, 3, H, W) uint8, `count` in all.
        count: N, which precedes the images in the file.
        labels: N class indices, written as `arr_1`; None leaves them out.
    """
    left = count

    def write(partial: Path) -> None:
        nonlocal left
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                for batch in batches:
                    images = batch.permute(0, 2, 3, 1).contiguous().numpy()
                    if left == count:
                        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *images.shape[1:])}
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(images.tobytes())
                    left -= len(images)
            if labels is not None:
                with archive.open("arr_1.npy", "w") as file:
                    np.lib.format.write_array(file, np.asarray(labels, np.int64), allow_pickle=False)

    written = write_atomically(path, write)
    assert left == 0, f"expected {count} images, got {count - left}"
    return written


def _read_header(file: IO[bytes]) -> tuple[Any, bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return reader(file)
