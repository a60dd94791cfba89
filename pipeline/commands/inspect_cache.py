"""`coda inspect` for a code cache: facts, figures, and an image of some samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from coda.benchmarks.cache_statistics import CacheStatistics, LabelBalance, cache_statistics
from coda.benchmarks.image_sets.image_set import drawn_indices
from coda.tokenizer import CodaError, CodaTokenizer, CodeCache
from coda.tokenizer.foundation.atomic_io import write_atomically
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import to_pil
from coda.tokenizer.images.grid import labelled_grid
from coda.tokenizer.usage import LevelUsage

from ..classes import ClassTable
from ..cli.arguments import UsageError
from ..cli.plain_table import plain_table
from .flags import Placement
from .inspect import CacheOptions
from .model import TOKENIZER, to_device

Rows = list[tuple[str, object]]
IMAGE = Path("runs/inspect.png")
_NUMBER = re.compile(r"\d[\d,.]*")


def inspect_cache(path: str, options: CacheOptions) -> list[str]:
    """Describe the code cache at `path`, in lines; some of its samples are decoded into a PNG file.

    Raises:
        UsageError: If the name of the file is not that of a PNG.
        CodaError: If the cache is damaged, the given tokenizer did not make it, or the file exists.
    """
    cache = CodeCache(path)
    decoder, reason = _decoder(cache, options.tokenizer)
    if options.out is None and IMAGE.exists() and not options.overwrite:
        decoder, reason = None, f"{IMAGE} exists already; give --overwrite, or another --out"
    out = options.out or IMAGE
    if decoder is not None:
        _check_out(out, options.overwrite)
    if options.verify:
        cache.verify()
    found = cache_statistics(cache)
    shown_samples = f"none: {reason}"
    if decoder is not None:
        grid = decoded_samples(cache, decoder, options.num, options.seed)
        write_atomically(out, lambda partial: grid.save(partial, "PNG"))
        shown_samples = f"{min(options.num, len(cache))} samples, drawn from seed {options.seed}, in {out}"
    return [
        *plain_table(_facts(cache)),
        "",
        *_usage_table(cache, found),
        "",
        *plain_table(
            [*_labels(cache, found.labels), *_duplicates(cache, found), *_skipped(cache), ("image", shown_samples)]
        ),
    ]


def decoded_samples(cache: CodeCache, tokenizer: CodaTokenizer, num: int, seed: int) -> Image.Image:
    """A grid of at most `num` samples, each under the name of its class or, if it has none, its key.

    Args:
        cache: A cache with at least one sample.
        tokenizer: The tokenizer that made the cache.
        num: Number of samples.
        seed: Seed for the choice of the samples.
    """
    model = to_device(tokenizer, Placement())
    device = next(model.parameters()).device
    classes = ClassTable.of_model(cache.num_classes, cache.class_names)
    images, captions = [], []
    chosen = drawn_indices(len(cache), num, seed)
    with progress("Decoding", total=len(chosen), unit="images") as bar:
        for i in chosen:
            codes, label = cache[i]
            images.append(to_pil(model.decode(codes[None].to(device), layout=cache.layout)[0]))
            captions.append(classes[label].name if 0 <= label < len(classes) else cache.key(i))
            bar.advance()
    return labelled_grid(images, captions)


def _decoder(cache: CodeCache, given: str | None) -> tuple[CodaTokenizer | None, str]:
    """The tokenizer that decodes the codes, or None and the reason.

    Raises:
        CodaError: If the given one cannot be loaded, or made other codes.
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
    return (tokenizer, "") if len(cache) else (None, "the cache is empty")


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: expected a name that ends in .png")
    if out.is_dir():
        raise CodaError(f"{out} is a directory; --out names a PNG file")
    if out.exists() and not overwrite:
        raise CodaError(f"{out} exists already; choose another --out or give --overwrite")


def _facts(cache: CodeCache) -> Rows:
    variants = cache.manifest["variants"]
    many = f", in {len(variants)} variants ({', '.join(variants)}): {len(cache):,} samples" if len(variants) > 1 else ""
    return [
        ("images", f"{cache.num_images:,}{many}"),
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
        ("labels", f"{found.images:,} of {cache.num_images:,} images have one"),
        ("classes", f"{found.classes:,} seen, of {cache.num_classes:,}"),
        ("per class seen", f"{found.fewest:,} to {found.most:,} images, {found.median:,.1f} in the median"),
        ("evenness", f"{100 * found.evenness:.1f} % of the entropy of classes equally frequent"),
    ]


def _duplicates(cache: CodeCache, found: CacheStatistics) -> Rows:
    if not found.duplicates:
        return [("duplicates", "none: no two images have the same codes")]
    examples: Rows = [("", f"{key} has those of {earlier}") for key, earlier in found.duplicate_keys]
    return [
        ("duplicates", f"{found.duplicates:,} of {cache.num_images:,} images, with the codes of an earlier one"),
        *examples,
    ]


def _skipped(cache: CodeCache) -> Rows:
    """Number of items left out for each reason, most frequent first, and the first of them.

    Reasons that differ in their numbers only (of pixels, of bytes) are one.
    """
    keys: dict[str, list[str]] = {}
    for item in cache.manifest["skipped"]:
        keys.setdefault(_NUMBER.sub("…", item["reason"]), []).append(item["key"])
    reasons = sorted(keys, key=lambda reason: -len(keys[reason]))
    examples: Rows = [("", f"{len(keys[reason]):,} {reason}; first {keys[reason][0]}") for reason in reasons]
    return [("left out", f"{len(cache.manifest['skipped']):,} broken" if keys else "none"), *examples]
