"""The manifest of a code cache: written, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..foundation.errors import CodaError
from ..foundation.output_directory import read_mark
from ..foundation.reading import plain_name, read_json
from ..images.labels import MAX_CLASSES
from .format import FORMAT, FORMAT_VERSION, MANIFEST, PROGRESS, VALUE_TABLE

if TYPE_CHECKING:
    from ..tokenizer import CodaTokenizer


class DescribedSource(Protocol):
    """What codes are made from: an `ImageSource`, or codes that another program made."""

    kind: str
    num_classes: int
    class_names: list[str] | None

    @property
    def fingerprint(self) -> str:
        """Tells the source from any other."""

    def __len__(self) -> int:
        """Number of items."""


def manifest_header(
    tokenizer: CodaTokenizer,
    source: DescribedSource,
    variants: Sequence[str],
    preprocessing: Mapping[str, Any],
    shard_size: int,
    part: Sequence[int] | None,
) -> dict[str, Any]:
    """Everything that decides which bytes a cache holds: the part of its manifest that is known before the first image.

    Args:
        tokenizer: The tokenizer that can decode the codes.
        source: Images, or codes of another program.
        variants: Names of the variants of each image.
        preprocessing: How images became pixels of the tokenizer's size.
        shard_size: Items per shard.
        part: (i, n) for the i-th of n parts; None for all.

    Raises:
        CodaError: If there are more classes than a cache may have.
    """
    if source.num_classes > MAX_CLASSES:
        raise CodaError(f"{source.num_classes:,} classes are too many: a code cache has at most {MAX_CLASSES:,}")
    described = tokenizer.describe()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "tokenizer": {name: described[name] for name in described if name not in ("fingerprint", "layout", "size")},
        "layout": tokenizer.layout.to_json(),
        "codes": str(tokenizer.layout.dtype_on_disk).split(".")[-1],
        "variants": list(variants),
        "preprocessing": dict(preprocessing),
        "source": {"kind": source.kind, "items": len(source), "fingerprint": source.fingerprint},
        "num_classes": source.num_classes,
        "class_names": source.class_names,
        "shard_size": shard_size,
        "part": None if part is None else list(part),
    }


def finished_manifest(
    head: dict[str, Any], value_table: str, shards: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The manifest of a complete cache.

    Args:
        head: See `manifest_header`.
        value_table: SHA-256 of the value table's file.
        shards: Description of each shard, in order.
        skipped: Index, key and reason of each item left out, in the source's order.
    """
    images = sum(shard["images"] for shard in shards)
    return {
        **head,
        "images": images,
        "samples": images * len(head["variants"]),
        "value_table": {"file": VALUE_TABLE, "sha256": value_table},
        "shards": list(shards),
        "skipped": list(skipped),
    }


def is_code_cache(folder: Path) -> bool:
    """Whether a folder holds a code cache, whole or unfinished, by what its own files say."""
    header = read_mark(folder / MANIFEST) or read_mark(folder / PROGRESS).get("head", {})
    return isinstance(header, dict) and header.get("format") == FORMAT


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a complete cache, checked as far as it can be without opening other files.

    Raises:
        CodaError: If there is none, it is damaged, or of a format version that this version of coda does not read.
    """
    file = path / MANIFEST
    if not file.is_file():
        if (path / PROGRESS).is_file():
            raise CodaError(f"{path} is an unfinished code cache: run the command that began it again to finish it")
        raise CodaError(
            f"{path} is not a code cache: it has no {MANIFEST}" if path.exists() else f"{path} does not exist"
        )
    return check_manifest(read_json(file), file)


def check_manifest(manifest: dict[str, Any], file: Path) -> dict[str, Any]:
    """Check a manifest that was read from `file`.

    Raises:
        CodaError: If it is damaged, or of a format version that this version of coda does not read.
    """
    path = file.parent
    if manifest.get("format") != FORMAT:
        raise CodaError(f"{path} is not a code cache: its {file.name} says {_short(manifest.get('format'))}")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = _short(manifest.get("format_version"))
        raise CodaError(f"{path} has format version {version}; this version of coda reads {FORMAT_VERSION}")
    problem = _problem_of(manifest)
    if problem:
        raise CodaError(f"{path} has a damaged manifest: {problem} is missing or wrong")
    for shard in manifest["shards"]:
        plain_name(shard["file"], file)
    plain_name(manifest["value_table"]["file"], file)
    return manifest


def _problem_of(manifest: dict[str, Any]) -> str | None:
    """The first part of a manifest that is not as `finished_manifest` writes it."""
    keys = ("num_classes", "class_names", "variants", "value_table", "part", "shards", "source")
    num_classes, names, variants, table, part, shards, source = cast(list[Any], [manifest.get(key) for key in keys])
    sound: dict[str, bool] = {
        "tokenizer_fingerprint": isinstance(manifest.get("tokenizer_fingerprint"), str),
        "layout": isinstance(manifest.get("layout"), dict),
        "variants": _are(variants, str) and bool(variants),
        "num_classes": _is_count(num_classes, MAX_CLASSES),
        "source": isinstance(source, dict) and _is_count(source.get("items")),
        "shard_size": _is_count(manifest.get("shard_size")) and bool(manifest["shard_size"]),
        "tokenizer": isinstance(manifest.get("tokenizer", {}), dict),
        "class_names": names is None or (isinstance(names, list) and _are(names, str) and len(names) == num_classes),
        "part": part is None
        or (isinstance(part, list) and _are(part, int) and len(part) == 2 and 1 <= part[0] <= part[1]),
        "value_table": isinstance(table, dict) and {"file", "sha256"} <= table.keys(),
        "shards": isinstance(shards, list) and all(map(_is_shard, shards)),
        "skipped": _are_skipped(manifest.get("skipped")),
    }
    sound["images"] = sound["shards"] and manifest.get("images") == sum(shard["images"] for shard in manifest["shards"])
    return next((name for name, is_sound in sound.items() if not is_sound), None)


def read_progress(file: Path) -> list[tuple[int, list[dict[str, Any]], dict[str, Any]]]:
    """The shards that a progress file says are done: (number, items left out, description as in the manifest).

    Raises:
        CodaError: If the file is damaged.
    """
    found = read_json(file).get("shards", {})
    shards: list[tuple[int, list[dict[str, Any]], dict[str, Any]]] = []
    for number, entry in found.items() if isinstance(found, dict) else ():
        skipped: Any = entry.pop("skipped", None) if isinstance(entry, dict) else None
        if not (number.isdecimal() and _is_shard(entry) and _are_skipped(skipped)):
            raise CodaError(f"{file} is damaged: shard {number} is not described as it should be")
        plain_name(entry["file"], file)
        shards.append((int(number), skipped, entry))
    return shards


def _is_shard(entry: Any) -> bool:
    """Whether JSON describes a shard, as manifest and progress file do; its file name is not checked."""
    return (
        isinstance(entry, dict)
        and all(_is_count(entry.get(key)) for key in ("bytes", "images", "start", "stop"))
        and isinstance(entry.get("sha256"), str)
        and "file" in entry
    )


def _are_skipped(items: Any) -> bool:
    """Whether JSON describes items that were left out: index, key and reason of each."""
    kinds = {"index": int, "key": str, "reason": str}
    return _are(items, dict) and all({name: type(value) for name, value in item.items()} == kinds for item in items)


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_count(value: Any, largest: int = 2**62) -> bool:
    return type(value) is int and 0 <= value <= largest


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """The differences of two descriptions in words: `size 64 there, 256 here`."""
    if there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*here, *(key for key in there if key not in here)]
        found = [differences(there.get(key), here.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [difference for some in found for difference in some]
    return [f"{name} {_short(there)} there, {_short(here)} here"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 32 else f"{text[:16]}…"
