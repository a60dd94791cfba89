"""What it costs to know a source: every process lists all of it, keeps the list, and computes its fingerprint.

Measured on real sources of many tiny items: class folders of empty files, a tar archive whose members are as long as
photographs but are holes, so that nothing is stored, and a parquet file of rows without bytes. All of it grows in
proportion to the number of items, so a cost per item says what any number costs.
"""

from __future__ import annotations

import gc
import tarfile
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coda.tokenizer.images import ImageSource, open_images
from coda.tokenizer.images.labels import imagenet_wnids

KINDS = ("folder", "archive", "table")

_PER_CLASS = 1000
_FIRST_LABEL = 1000  # Python keeps small numbers only once, and ImageNet's labels are mostly large ones
_MEMBER_BYTES = 110_000
_SYSTEM_IO = Path("/proc/self/io")


@dataclass(frozen=True)
class SourceCost:
    """One item's part in the cost of a source.

    Attributes:
        kind: One of `KINDS`.
        listing: Processor seconds of listing.
        fingerprint: Processor seconds of the fingerprint.
        requests: How often the storage is asked while listing: a stat for each file of a folder, a read for each
            header of an archive that lies beyond what was read before. None where the system does not count them.
        memory: Bytes that the list takes in a process.
    """

    kind: str
    listing: float
    fingerprint: float
    requests: float | None
    memory: float

    def seconds(self, items: int, request_seconds: float) -> float:
        """Until one process knows a source of so many items, if each request takes so long."""
        return items * (self.listing + self.fingerprint + (self.requests or 0.0) * request_seconds)


def source_cost(kind: str, items: int) -> SourceCost:
    """Make a source of `items` items in a temporary folder and list it, twice: for the time, and for the memory."""
    make = {"folder": _make_folder, "archive": _make_archive, "table": _make_table}[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), items)
        reads, began = _reads(), time.process_time()
        source = open_images(path)
        listed, more_reads = time.process_time(), _reads()
        assert len(source) == items and source.fingerprint
        done = time.process_time()
        requests = None if reads is None or more_reads is None else (more_reads - reads) / items
        return SourceCost(
            kind=kind,
            listing=(listed - began) / items,
            fingerprint=(done - listed) / items,
            requests=1.0 if kind == "folder" else requests,
            memory=_held(path) / items,
        )


def _held(path: Path) -> int:
    """Bytes that the source at `path` keeps, Python's and arrow's."""
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        source: ImageSource = open_images(path)
        gc.collect()
        python, _ = tracemalloc.get_traced_memory()
        assert len(source)
        return python + pa.total_allocated_bytes() - arrow
    finally:
        tracemalloc.stop()


def _reads() -> int | None:
    """Calls of read that this process has made; None where the system does not count them."""
    try:
        lines = _SYSTEM_IO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("syscr:")), None)


def _names(items: int) -> list[str]:
    """Names as ImageNet has them: n01440764/n01440764_10026."""
    wnids = imagenet_wnids()
    classes = [wnids[i // _PER_CLASS % len(wnids)] for i in range(items)]
    return [f"{wnid}/{wnid}_{10000 + i % 90000}" for i, wnid in enumerate(classes)]


def _make_folder(folder: Path, items: int) -> Path:
    for name in _names(items):
        file = folder / f"{name}.JPEG"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    return folder


def _make_archive(folder: Path, items: int) -> Path:
    """An image and its label after each other, as WebDataset has them."""
    path = folder / "images-000000.tar"
    with open(path, "wb") as file:
        for i, name in enumerate(_names(items)):
            label = str(_FIRST_LABEL + i // _PER_CLASS).encode()
            for suffix, size in ((".jpg", _MEMBER_BYTES), (".cls", len(label))):
                member = tarfile.TarInfo(name.partition("/")[2] + suffix)
                member.size = size
                file.write(member.tobuf())
                end = file.tell() + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                file.write(label if suffix == ".cls" else b"")
                file.seek(end)
        file.write(b"\0" * 2 * tarfile.BLOCKSIZE)
    return path


def _make_table(folder: Path, items: int) -> Path:
    path = folder / "train-00000-of-00001.parquet"
    image = pa.array(
        [{"bytes": b"", "path": name.partition("/")[2] + ".JPEG"} for name in _names(items)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    labels = pa.array([_FIRST_LABEL + i // _PER_CLASS for i in range(items)], pa.int64())
    pq.write_table(pa.table({"image": image, "label": labels}), path, row_group_size=1000)
    return path
