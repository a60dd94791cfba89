"""`coda cache export` and `coda cache import`: the lines they end with, and wrong uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coda.pipeline.cli.cli import main
from coda.tokenizer import CodaTokenizer, CodeCache
from coda.tokenizer.code_cache import CacheWriter, ShardRows
from coda.tokenizer.code_cache.manifest import manifest_header
from coda.tokenizer.images import open_images

from .conftest import make_tokenizer_parts

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def cache(tmp_path: Path) -> CodeCache:
    """runs/tokenizer, and runs/cache with the codes of three images."""
    tokenizer = CodaTokenizer(*make_tokenizer_parts())
    tokenizer.save_pretrained("runs/tokenizer")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        (photos / f"{i}.png").touch()
    head = manifest_header(tokenizer, open_images(photos), ["original"], {"size": [16, 16]}, 2, None)
    writer = CacheWriter("runs/cache", head, tokenizer.value_table())
    codes = torch.randint(32, (3, 1, 85), generator=torch.Generator().manual_seed(0))
    for span in writer.remaining():
        here = slice(span.start, span.stop)
        indices = torch.tensor(span)
        writer.append(
            ShardRows(codes[here], torch.full((len(span),), -1), indices, list(map(str, span))), [], span.stop
        )
    writer.finish()
    writer.close()
    return CodeCache("runs/cache")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_export_and_import_with_nothing_but_defaults(cache: CodeCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "cache", "export") == (0, "Made an export of 3 images as npy in runs/export\n", "")
    assert Path("runs/export/imagenet16_codes/2.npy").is_file()
    imported = said(capsys, "cache", "import", "runs/export", "--out", "runs/imported", "--shard-size", "2")
    assert imported == (0, "Made a code cache of 3 images in runs/imported\n", "")
    back = CodeCache("runs/imported")
    assert torch.equal(back.batch(range(3))[0], cache.batch(range(3))[0]) and len(back.manifest["shards"]) == 2
    for to in ("webdataset", "parquet"):
        status, out, _ = said(capsys, "cache", "export", "runs/imported", "--to", to, "--out", f"runs/{to}")
        assert (status, out) == (0, f"Made an export of 3 images as {to} in runs/{to}\n")
    status, _, err = said(capsys, "cache", "export", "--to", "parquet")
    assert status == 1 and err.count("\n") == 1 and "runs/export holds another export" in err
    assert said(capsys, "cache", "export", "--to", "parquet", "--overwrite")[0] == 0


def test_wrong_uses_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, status, complaint in [
        (["cache"], 2, "coda: cache needs a second word; choose from export, import"),
        (["cache", "export", "--to", "zip"], 2, '--to "zip" is not one of npy, webdataset, parquet'),
        (["cache", "import"], 2, "coda cache import: DIRECTORY is missing"),
        (["cache", "export"], 1, "coda cache export: there is no runs/cache yet: coda tokenize-dataset makes it"),
        (["cache", "import", "d"], 1, "coda cache import: there is no runs/tokenizer yet: coda adapt makes it"),
    ]:
        found, out, err = said(capsys, *words)
        assert (found, out, err.count("\n")) == (status, "", 1) and err.startswith("coda") and complaint in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_of_llamagens_is_one_line(cache: CodeCache, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "cache", "import", "photos", "--out", "runs/imported")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("coda cache import: photos holds no pair of folders such as imagenet256_codes")
