"""The part of `coda inspect` that looks into a code cache: facts, figures, and a picture of some samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from coda.benchmarks.cache_statistics import CacheStatistics, LabelBalance, cache_statistics
from coda.benchmarks.image_sets.image_set import drawn_indices
from coda.benchmarks.usage import LevelUsage
from coda.tokenizer import CodaError, CodaTokenizer, CodeCache
from coda.tokenizer.foundation.atomic_io import write_atomically
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import to_pil

from ..classes import ClassTable
from ..cli.arguments import UsageError
from ..cli.plain_table import plain_table
from ..grid import labelled_grid
from .model import TOKENIZER, on_device

Rows = list[tuple[str, object]]
PICTURE = Path("runs/inspect.png")
_NUMBER = re.compile(r"\d[\d,.]*")


def inspect_cache(
    path: str, verify: bool, tokenizer: str | None, num: int, seed: int, out: Path | None, overwrite: bool
) -> list[str]:
    """What is in the code cache at `path`, in lines; and at `out` a picture of some of its samples, decoded.

    Args:
        path: The cache.
        verify: Recompute its checksums before anything else.
        tokenizer: Directory or hub id; None takes `TOKENIZER` where that made the cache, else there is no picture.
        num: Samples in the picture.
        seed: Of their drawing.
        out: The picture, a PNG; None takes `PICTURE`, where there is none yet.
        overwrite: Replace the picture.

    Raises:
        UsageError: `out` is no name of a PNG.
        CodaError: The cache is damaged, the tokenizer that was given did not make it, or `out` exists.
    """
    cache = CodeCache(path)
    decoder, reason = _decoder(cache, tokenizer)
    if out is None and PICTURE.exists() and not overwrite:
        decoder, reason = None, f"{PICTURE} is there already and stays; give --overwrite, or another --out"
    out = out or PICTURE
    if decoder is not None:
        _check_out(out, overwrite)
    if verify:
        cache.verify()
    found = cache_statistics(cache)
    if decoder is not None:
        grid = decoded_samples(cache, decoder, num, seed)
        write_atomically(out, lambda partial: grid.save(partial, "PNG"))
    shown = f"{min(num, len(cache))} samples, drawn from seed {seed}, in {out}" if decoder else f"none: {reason}"
    return [
        *plain_table(_facts(cache)),
        "",
        *_usage_table(cache, found),
        "",
        *plain_table([*_labels(cache, found.labels), *_duplicates(cache, found), *_skipped(cache), ("picture", shown)]),
    ]


def decoded_samples(cache: CodeCache, tokenizer: CodaTokenizer, num: int, seed: int) -> Image.Image:
    """A grid of at most `num` samples, each below the name of its class or, where it has none, its key.

    Args:
        cache: It has a sample.
        tokenizer: The one that made the cache.
        num: How many.
        seed: Decides which ones.
    """
    model = on_device(tokenizer, "auto", "auto")
    device = next(model.parameters()).device
    classes = ClassTable.of_model(cache.num_classes, cache.class_names)
    pictures, captions = [], []
    chosen = drawn_indices(len(cache), num, seed)
    with progress("Decoding", total=len(chosen), unit="images") as bar:
        for i in chosen:
            codes, label = cache[i]
            pictures.append(to_pil(model.decode(codes[None].to(device), layout=cache.layout)[0]))
            captions.append(classes[label].name if 0 <= label < len(classes) else cache.key(i))
            bar.advance()
    return labelled_grid(pictures, captions)


def _decoder(cache: CodeCache, given: str | None) -> tuple[CodaTokenizer | None, str]:
    """The tokenizer that decodes the codes, or None and why there is none.

    Raises:
        CodaError: The one that was given cannot be loaded, or made other codes.
    """
    if given is None and not Path(TOKENIZER).exists():
        return None, f"there is no {TOKENIZER}; give the --tokenizer that made the cache"
    name = given or TOKENIZER
    try:
        tokenizer = CodaTokenizer.from_pretrained(name)
        if tokenizer.fingerprint != cache.tokenizer_fingerprint:
            raise CodaError(
                f"{cache.path} holds codes of the tokenizer {cache.tokenizer_fingerprint}, not of {name}, which is "
                f"{tokenizer.fingerprint}: give the --tokenizer that made the cache"
            )
    except CodaError as error:
        if given is not None:
            raise
        return None, str(error)
    return (tokenizer, "") if len(cache) else (None, "there is no sample")


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a PNG, and its name ends in .png")
    if out.is_dir():
        raise CodaError(f"{out} is a directory; --out names a picture")
    if out.exists() and not overwrite:
        raise CodaError(f"{out} exists already; choose another --out or give --overwrite")


def _facts(cache: CodeCache) -> Rows:
    variants = cache.manifest["variants"]
    many = f", in {len(variants)} variants ({', '.join(variants)}): {len(cache):,} samples" if len(variants) > 1 else ""
    return [
        ("pictures", f"{cache.num_images:,}{many}"),
        ("layout", cache.layout),
        ("tokenizer", cache.tokenizer_fingerprint),
    ]


def _usage_table(cache: CodeCache, found: CacheStatistics) -> list[str]:
    columns = ("level", "side", "codes", "usage %", "of attainable %", "perplexity", "entropy bits")
    sides = [f"{h}x{w}" for h, w in cache.layout.sides]
    rows = [_usage_row(level, side) for level, side in zip(found.levels, sides, strict=True)]
    return plain_table([columns, *rows, _usage_row(found.overall, "")], numbers=True)


def _usage_row(found: LevelUsage, side: str) -> Sequence[object]:
    attained = 100 * found.usage / found.attainable if found.attainable else 0.0
    figures = (f"{found.usage:.2f}", f"{attained:.2f}", f"{found.perplexity:,.1f}", f"{found.bits:.2f}")
    return "all" if found.level is None else found.level, side, f"{found.codes_seen:,}", *figures


def _labels(cache: CodeCache, found: LabelBalance | None) -> Rows:
    if found is None:
        return [("labels", "none")]
    return [
        ("labels", f"{found.images:,} of {cache.num_images:,} pictures have one"),
        ("classes", f"{found.classes:,} seen, of {cache.num_classes:,}"),
        ("per class seen", f"{found.fewest:,} to {found.most:,} pictures, {found.median:,.1f} in the median"),
        ("evenness", f"{100 * found.evenness:.1f} % of the entropy of classes equally frequent"),
    ]


def _duplicates(cache: CodeCache, found: CacheStatistics) -> Rows:
    if not found.duplicates:
        return [("duplicates", "none: no two pictures have the same codes")]
    examples: Rows = [("", f"{key} has those of {earlier}") for key, earlier in found.duplicate_keys]
    return [
        ("duplicates", f"{found.duplicates:,} of {cache.num_images:,} pictures, with the codes of an earlier one"),
        *examples,
    ]


def _skipped(cache: CodeCache) -> Rows:
    """How many items were left out for each reason, the most frequent first, and the first of them.

    Numbers in a reason (of pixels, of bytes) do not make it another one.
    """
    keys: dict[str, list[str]] = {}
    for item in cache.manifest["skipped"]:
        keys.setdefault(_NUMBER.sub("…", item["reason"]), []).append(item["key"])
    reasons = sorted(keys, key=lambda reason: -len(keys[reason]))
    examples: Rows = [("", f"{len(keys[reason]):,} {reason}; first {keys[reason][0]}") for reason in reasons]
    return [("left out", f"{len(cache.manifest['skipped']):,} broken" if keys else "none"), *examples]
