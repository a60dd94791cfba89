from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from coda.tokenizer.images import BrokenImage, ImageSource, decode_image
from coda.tokenizer.images.imagenet import imagenet_classes

GOLDEN, TENCH = "n02099601", "n01440764"  # ImageNet's 207 and 0
WNIDS = [entry.wnid for entry in imagenet_classes()]


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def save(folder: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(shade * 10))
    return folder


def save_tar(path: Path, members: Sequence[tuple[str, bytes]], **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.get(name, {}).items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def save_parquet(
    path: Path, shades: Sequence[int | None], labels: Any = None, names: list[str] | None = None, **options: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": None if shade is None else jpeg(shade), "path": f"{shade}.jpg"} for shade in shades]
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    table = pa.table(columns)
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, **options)
    return path


def shade(source: ImageSource, i: int) -> int:
    return round(decode_image(source.read(i)).float().mean().item() / 10) * 10


def listed(source: ImageSource) -> list[tuple[str, int]]:
    return [(source.key(i), source.label(i)) for i in range(len(source))]


def problems(source: ImageSource) -> dict[str, str]:
    found = {}
    for i in range(len(source)):
        try:
            source.read(i)
        except BrokenImage as error:
            found[source.key(i)] = str(error)
    return found
