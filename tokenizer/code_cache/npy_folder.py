"""Import codes that another program extracted, two .npy files per image, into a code cache.

    folder/imagenet256_codes/0.npy     (1, V, T), (V, T) or (T,) integers
    folder/imagenet256_labels/0.npy    (1,) or () integers

LlamaGen's extract_codes_c2i.py writes them like this, with V = 2 variants (original, mirrored) or 10 (ten crops), and
so does `export_cache`. Shapes: N images, V variants, T codes.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import closing
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from numpy.lib.format import read_array

from ..foundation.errors import CodaError, first_line
from ..foundation.progress import progress
from ..foundation.reading import read_json
from ..images.labels import name_numbers
from ..layout import CodeLayout
from ..tokenizer import CodaTokenizer
from .format import EXPORTED_MANIFEST, TEN_CROP, VARIANTS, ShardRows
from .manifest import check_manifest, manifest_header
from .reader import CodeCache
from .writer import CacheWriter
from .writer_thread import WriterThread

_VARIANTS = {len(names): names for names in (VARIANTS[:1], VARIANTS, TEN_CROP)}
_UNKNOWN = dict.fromkeys(("crop", "resampling", "orientation", "transparency", "precision"), "unknown")
_DAMAGED = (ValueError, TypeError, SyntaxError, TokenError)  # numpy's errors for files that are not .npy
_BATCH = 64  # images per call of the writer


def import_npy(
    folder: str | Path,
    tokenizer: str | Path | CodaTokenizer,
    out: str | Path = "runs/cache",
    shard_size: int = 16384,
    overwrite: bool = False,
) -> CodeCache:
    """Make a code cache of a folder of .npy files such as LlamaGen's. Rerun the same call to resume.

    Class names are those of the export's `cache.json`, if there is one. How the images were cropped and encoded is not
    known: the manifest says "unknown".

    Args:
        folder: Holds one pair of folders `…_codes` and `…_labels` with the files 0.npy, 1.npy, … each. All images have
            V = 1 variant (original), 2 (original, mirrored) or 10 (LlamaGen's ten crops). Label -1 means no label.
        tokenizer: The tokenizer that made the codes, or its directory or hub id.
        out: The cache's folder.
        shard_size: Images per file.
        overwrite: Replace the cache in `out`.

    Raises:
        CodaError: If `out` holds something else, a file is missing or cannot be read, or its codes do not fit the
            tokenizer.
    """
    if shard_size < 1:
        raise CodaError(f"shard size {shard_size}: it must be at least 1")
    if not isinstance(tokenizer, CodaTokenizer):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    source = _NpyFolder(Path(folder), tokenizer.layout)
    preprocessing = {"size": list(tokenizer.size), **_UNKNOWN}
    head = manifest_header(tokenizer, source, source.variants, preprocessing, shard_size, None)
    with closing(CacheWriter(out, head, tokenizer.value_table().cpu(), overwrite)) as writer:
        if not writer.complete:
            _write_codes(writer, source)
            writer.finish()
    return CodeCache(out)


class _NpyFolder:
    """Codes and labels of N images, as a `DescribedSource`.

    Args:
        folder: See `import_npy`.
        layout: Layout that the codes must fit.

    Attributes:
        variants: V names.
        labels: (N,) int64, -1 for no label.

    Raises:
        CodaError: If files are missing, a label cannot be read, or the codes of the first image do not fit.
    """

    kind = "npy"

    def __init__(self, folder: Path, layout: CodeLayout) -> None:
        self._layout = layout
        self._codes, labels = _pair(folder)
        count = _count(self._codes, labels)
        first = _read_codes(self._codes / "0.npy", layout)
        if len(first) not in _VARIANTS:
            known = "1 (original), 2 (original, mirrored) and 10 (ten crops)"
            raise CodaError(f"{self._codes / '0.npy'} holds {len(first)} variants of an image; known are {known}")
        self.variants = _VARIANTS[len(first)]
        self.labels, self.fingerprint = self._read_labels(labels, count)
        self.num_classes, self.class_names = _classes(folder, int(self.labels.max()))

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, i: int) -> str:
        """Name of an image: its file name."""
        return f"{i}.npy"

    def codes(self, i: int) -> torch.Tensor:
        """Codes of an image, (V, T) int64; CodaError where they do not fit the layout or the first image's variants."""
        file = self._codes / self.key(i)
        codes = _read_codes(file, self._layout)
        if len(codes) != len(self.variants):
            raise CodaError(f"{file} holds {len(codes)} variants of an image, those before it {len(self.variants)}")
        return torch.from_numpy(codes.astype(np.int64))

    def _read_labels(self, folder: Path, count: int) -> tuple[torch.Tensor, str]:
        """All labels, and a SHA-256 over them and the sizes and times of change of the codes' files."""
        labels, digest = np.empty(count, dtype=np.int64), hashlib.sha256()
        with progress("Reading labels", count, "images") as bar:
            for i in range(count):
                labels[i], status = _read_label(folder / self.key(i)), (self._codes / self.key(i)).stat()
                digest.update(f"{labels[i]}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
                bar.advance()
        return torch.from_numpy(labels), digest.hexdigest()


def _write_codes(writer: CacheWriter, source: _NpyFolder) -> None:
    """Append everything that is missing; an interruption loses some seconds of work."""
    missing = writer.remaining()
    done = len(source) - sum(map(len, missing))
    with progress("Importing", len(source), "images", completed=done) as bar, WriterThread(writer) as thread:
        for span in missing:
            for start in range(span.start, span.stop, _BATCH):
                batch = range(start, min(span.stop, start + _BATCH))
                codes = torch.stack([source.codes(i) for i in batch])
                labels, keys = source.labels[batch.start : batch.stop], [source.key(i) for i in batch]
                thread.append(ShardRows(codes, labels, torch.tensor(batch), keys), [], batch.stop)
                bar.advance(len(batch))


def _classes(folder: Path, highest: int) -> tuple[int, list[str] | None]:
    """Number and names of the classes: those of the cache that was exported, if this is an export of coda."""
    file = folder / EXPORTED_MANIFEST
    if not file.is_file():
        return name_numbers(highest)
    described = check_manifest(read_json(file), file)
    if highest >= described["num_classes"]:
        raise CodaError(f"{folder} holds label {highest}, but {file} says {described['num_classes']} classes")
    return described["num_classes"], described["class_names"]


def _pair(folder: Path) -> tuple[Path, Path]:
    """The one pair of folders of codes and of labels."""
    if not folder.is_dir():
        raise CodaError(f"{folder}: no such folder")
    codes = [path for path in sorted(folder.glob("*_codes")) if path.is_dir()]
    pairs = [(path, path.with_name(f"{path.name.removesuffix('_codes')}_labels")) for path in codes]
    pairs = [pair for pair in pairs if pair[1].is_dir()]
    if len(pairs) != 1:
        found = f"{len(pairs)} pairs" if pairs else "no pair"
        raise CodaError(f"{folder} holds {found} of folders such as imagenet256_codes and imagenet256_labels, not one")
    return pairs[0]


def _count(codes: Path, labels: Path) -> int:
    """Number of images; CodaError if the file of one is missing in either folder."""
    numbered = re.compile(r"(0|[1-9]\d*)\.npy")
    found = {
        folder: {int(match[1]) for match in map(numbered.fullmatch, os.listdir(folder)) if match}
        for folder in (codes, labels)
    }
    count = max(found[codes] | found[labels], default=-1) + 1
    if count == 0:
        raise CodaError(f"{codes} holds no codes: no file 0.npy, 1.npy, …")
    for folder, numbers in found.items():
        if len(numbers) < count:
            gap = next(i for i in range(count) if i not in numbers)
            raise CodaError(f"{folder / f'{gap}.npy'} is missing; there are files up to {count - 1}.npy")
    return count


def _read_codes(file: Path, layout: CodeLayout) -> np.ndarray:
    """Codes of one image, (V, T) of some type of integers, that fit the layout."""
    codes = _read_integers(file)
    if codes.ndim == 3 and len(codes) == 1:
        codes = codes[0]
    elif codes.ndim == 1:
        codes = codes[None]
    if codes.ndim != 2 or not len(codes):
        raise CodaError(f"{file} holds integers of shape {codes.shape}; codes have (1, V, T), (V, T) or (T,)")
    if codes.shape[1] != layout.num_tokens:
        raise CodaError(f"{file} holds {codes.shape[1]:,} codes of an image; the tokenizer makes {layout.num_tokens:,}")
    lowest, highest = int(codes.min()), int(codes.max())
    if not 0 <= lowest <= highest < layout.codebook_size:
        wrong = lowest if lowest < 0 else highest
        raise CodaError(f"{file} holds code {wrong}, beyond a codebook of {layout.codebook_size:,}")
    return codes


def _read_label(file: Path) -> int:
    """The label of one image, -1 if it has none."""
    label = _read_integers(file)
    if label.shape not in ((), (1,)):
        raise CodaError(f"{file} holds integers of shape {label.shape}; a label has (1,) or ()")
    if not -1 <= int(label.item()) < 2**31:
        raise CodaError(f"{file} holds {label.item()}, which is not a label: they count from 0, and -1 means no label")
    return int(label.item())


def _read_integers(file: Path) -> np.ndarray:
    """The array of a .npy file; never unpickles anything."""
    try:
        with open(file, "rb") as opened:
            array = read_array(opened, allow_pickle=False)
    except _DAMAGED as error:
        raise CodaError(f"{file} cannot be read as .npy: {first_line(error)}") from None
    if array.dtype.kind not in "iu":
        raise CodaError(f"{file} holds {array.dtype}, not integers")
    return array
