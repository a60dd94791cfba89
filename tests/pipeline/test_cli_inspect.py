"""`coda inspect` on a code cache: what it prints, the image that it makes, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from coda.pipeline.cli.cli import main
from coda.tokenizer import CodaTokenizer, CodeCache
from coda.tokenizer.code_cache import CacheWriter, ShardRows
from coda.tokenizer.images import Skipped

from .conftest import NAMES, make_tokenizer_parts

pytestmark = pytest.mark.usefixtures("elsewhere")

IMAGES = 10
BROKEN = ["is empty", "is too narrow (1 x 90 pixels)", "is too narrow (2 x 80 pixels)"]  # after the images


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0/ and 1/: two tokenizers that differ in nothing but their weights."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for seed in (0, 1):
        CodaTokenizer(*make_tokenizer_parts(seed)).save_pretrained(folder / str(seed))
    return folder


@pytest.fixture
def cache(tokenizers: Path) -> CodeCache:
    """Ten images in two variants: labels 0 and 1 by turns, the last two without; image 7 has the codes of 2."""
    return make_cache(Path("cache"), tokenizers, [i % 2 for i in range(IMAGES - 2)] + [-1, -1])


def make_cache(out: Path, tokenizers: Path, labels: Sequence[int], part: tuple[int, int] | None = None) -> CodeCache:
    """As many images as there are labels, then the broken ones."""
    tokenizer = CodaTokenizer.from_pretrained(tokenizers / "0")
    codes = torch.randint(32, (len(labels), 2, tokenizer.layout.num_tokens))
    codes[7:8] = codes[2:3]
    head = {
        "format": "coda code cache",
        "format_version": 1,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "layout": tokenizer.layout.to_json(),
        "variants": ["original", "mirrored"],
        "source": {"items": len(labels) + len(BROKEN)},
        "num_classes": 4,
        "class_names": NAMES,
        "shard_size": 100,
        "part": part,
    }
    writer = CacheWriter(out, head, tokenizer.value_table())
    skipped = [Skipped(f"{i}.png", reason, i) for i, reason in enumerate(BROKEN, start=len(labels))]
    items = torch.arange(len(labels))
    rows = ShardRows(codes, torch.tensor(labels).long(), items, [f"{i}.png" for i in items])
    writer.append(rows, skipped, len(labels) + len(BROKEN))
    writer.finish()
    writer.close()
    return CodeCache(out)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    status = main(["inspect", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a failed run says; it must have printed and made nothing."""
    before = sorted(Path().rglob("*"))
    status, out, err = said(capsys, *words)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert sorted(Path().rglob("*")) == before
    return err


def test_a_cache_is_described(cache: CodeCache, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "cache")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "images     10, in 2 variants (original, mirrored): 20 samples"
    assert lines[1] == f"layout     {cache.layout}" and lines[2] == f"tokenizer  {cache.tokenizer_fingerprint}"
    assert lines[4] == "level  side  codes  usage %  of attainable %  perplexity  entropy bits"
    assert [line.split()[0] for line in lines[5:10]] == ["0", "1", "2", "3", "all"]
    assert len({len(line) for line in lines[4:10]}) == 1  # columns of numbers end together
    level, side, seen, usage, *_ = lines[5].split()
    first = len(torch.stack([codes for codes, _ in cache])[:, 0].unique())
    assert (level, side, seen, usage) == ("0", "1x1", str(first), f"{100 * first / 32:.2f}")
    for expected in (
        r"^labels +8 of 10 images have one$",
        r"^classes +2 seen, of 4$",
        r"^per class seen +4 to 4 images, 4\.0 in the median$",
        r"^evenness +100\.0 % of",
        r"^duplicates +1 of 10 images, with the codes of an earlier one\n +7\.png has those of 2\.png$",
        r"^left out +3 broken\n +2 is too narrow \(… x … pixels\); first 11\.png\n +1 is empty; first 10\.png$",
        r"^image +none: there is no runs/tokenizer; give the --tokenizer that made the cache$",
    ):
        assert re.search(expected, out, re.MULTILINE), expected
    assert lines[-1] == "cache is a complete code cache"
    assert not Path("runs").exists()


def test_a_cache_without_labels_says_so(tokenizers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cache(Path("cache"), tokenizers, [-1] * IMAGES)
    status, out, _ = said(capsys, "cache", "--tokenizer", tokenizers / "0")
    assert status == 0 and re.search("^labels +none$", out, re.MULTILINE)
    assert "per class" not in out and Path("runs/inspect.png").is_file()


def test_an_unfinished_cache_is_called_one(cache: CodeCache, capsys: pytest.CaptureFixture[str]) -> None:
    manifest_header = {key: cache.manifest[key] for key in cache.manifest if key not in ("images", "samples", "shards")}
    CacheWriter(Path("begun"), manifest_header, cache.value_table).close()
    assert "begun is an unfinished code cache: run the command that began it again" in refused(capsys, "begun")


def test_an_empty_part_has_no_image(tokenizers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cache(Path("cache"), tokenizers, [], part=(1, 1))
    status, out, err = said(capsys, "cache", "--tokenizer", tokenizers / "0", "--verify")
    assert (status, err) == (0, "")
    assert re.search("^images +0, in 2 variants", out) and re.search("^labels +none$", out, re.MULTILINE)
    assert re.search("^image +none: the cache is empty$", out, re.MULTILINE)
    assert not Path("runs").exists()


def test_the_image_shows_samples_of_the_seed(
    cache: CodeCache, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cache", "--tokenizer", tokenizers / "0"]
    status, out, _ = said(capsys, *words, "--num", 4)
    assert status == 0
    assert re.search("^image +4 samples, drawn from seed 0, in runs/inspect.png$", out, re.MULTILINE)
    for seed, name in ((0, "again.png"), (1, "other.png")):
        assert said(capsys, *words, "--num", 4, "--seed", seed, "--out", name)[0] == 0
    first, again, other = (Image.open(name) for name in ("runs/inspect.png", "again.png", "other.png"))
    assert first.format == "PNG" and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert said(capsys, *words, "--num", 99, "--out", "all.png")[1].count("20 samples, drawn") == 1
    assert Image.open("all.png").width > first.width


def test_each_cell_is_a_sample_decoded_below_its_class(cache: CodeCache, tokenizers: Path) -> None:
    from coda.pipeline.commands.inspect_cache import decoded_samples
    from coda.tokenizer.images import to_pil
    from coda.tokenizer.images.grid import labelled_grid

    tokenizer = CodaTokenizer.from_pretrained(tokenizers / "0")
    images = [to_pil(tokenizer.decode(codes[None])[0]) for codes, _ in cache]
    captions = [name for i in range(8) for name in [NAMES[i % 2]] * 2] + ["8.png", "8.png", "9.png", "9.png"]
    expected = labelled_grid(images, captions)
    assert decoded_samples(cache, tokenizer, num=20, seed=0).tobytes() == expected.tobytes()


def test_the_tokenizer_at_its_usual_place_is_taken_if_it_fits(
    cache: CodeCache, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    Path("runs/tokenizer").symlink_to(tokenizers / "1")
    status, out, _ = said(capsys, "cache")
    assert status == 0 and not Path("runs/inspect.png").exists()
    other = CodaTokenizer.from_pretrained(tokenizers / "1").fingerprint
    assert f"none: cache holds codes of the tokenizer {cache.tokenizer_fingerprint}, not of runs/tokenizer" in out
    assert other in out
    Path("runs/tokenizer").unlink()
    Path("runs/tokenizer").symlink_to(tokenizers / "0")
    assert said(capsys, "cache")[0] == 0
    assert Path("runs/inspect.png").is_file()


def test_a_tokenizer_that_was_given_and_does_not_fit_is_refused(
    cache: CodeCache, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "cache", "--tokenizer", tokenizers / "1")
    assert cache.tokenizer_fingerprint in message
    assert CodaTokenizer.from_pretrained(tokenizers / "1").fingerprint in message
    assert "holds no tokenizer" in refused(capsys, "cache", "--tokenizer", Path("cache").absolute())


def test_no_image_is_lost(cache: CodeCache, tokenizers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "--tokenizer", tokenizers / "0"]
    Path("mine.png").write_text("an image")
    Path("runs").mkdir()
    Path("runs/inspect.png").write_text("of yesterday")
    status, out, _ = said(capsys, *words)  # looking again is no failure
    assert status == 0 and "runs/inspect.png exists already" in out
    assert Path("runs/inspect.png").read_text() == "of yesterday"
    assert said(capsys, *words, "--overwrite")[0] == 0 and Image.open("runs/inspect.png").format == "PNG"
    assert "mine.png exists already; choose another --out" in refused(capsys, *words, "--out", "mine.png")
    assert Path("mine.png").read_text() == "an image"
    assert said(capsys, *words, "--out", "mine.png", "--overwrite")[0] == 0
    assert Image.open("mine.png").format == "PNG"
    Path("folder.png").mkdir()
    assert "is a directory" in refused(capsys, *words, "--out", "folder.png", "--overwrite")
    assert said(capsys, *words, "--out", "mine.jpg")[0] == 2


@pytest.mark.parametrize("flag", ["--verify", "--tokenizer=t", "--num=4", "--seed=1", "--out=p.png", "--overwrite"])
def test_flags_of_a_cache_are_refused_elsewhere(
    flag: str, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, tokenizers / "0", flag)
    assert f"{flag.partition('=')[0]} is for code caches" in message and "is a tokenizer" in message


def test_verify_reads_every_checksum(cache: CodeCache, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "cache", "--verify")
    assert status == 0 and out.endswith("cache is a complete code cache, every code verified\n")
    shard = Path("cache/shard-00000.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "shard-00000.safetensors has the wrong checksum" in refused(capsys, "cache", "--verify")
