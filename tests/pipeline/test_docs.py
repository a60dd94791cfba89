"""The documentation: the site builds without a warning, and its code blocks and the notebook run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from coda.pipeline.cli.cli import main
from coda.pipeline.loading import BUNDLED_MODEL
from coda.tokenizer import CodeCache, tokenize_dataset
from coda.tokenizer.code_cache import ShuffledBatches
from coda.tokenizer.settings import RunOptions

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "tokenizer" / "code_cache" / "README.md"]
BLOCK = re.compile(r"^```(\w*) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
MODELS = ["tiny", pytest.param("bundled", marks=pytest.mark.skipif(not BUNDLED_MODEL.exists(), reason="none is there"))]


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The mark (`title="needs a GPU"`) and the code of each block in that language."""
    return [(mark, code) for found, mark, code in BLOCK.findall(page.read_text()) if found == language]


def command_lines(page: Path) -> list[str]:
    """Every line of a page's shell blocks; in the README, every indented line that begins with `coda`."""
    text = "\n".join(code for _, code in blocks(page, "sh")) or page.read_text().replace("\n    coda ", "\ncoda ")
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"(coda|torchrun) ", line)]


LINES = [(page, line) for page in [*PAGES, ROOT / "README.md"] for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page.name}-{line[:40]}" for page, line in LINES])
def test_every_command_in_the_docs_is_a_right_command(
    page: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("coda") + 1 :]
    status = main(words if "--help" in words else [*words, "--dry-run"])
    assert (status, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_has_a_language_that_is_run(page: Path) -> None:
    assert {language for language, _, _ in BLOCK.findall(page.read_text())} <= {"sh", "python"}


@pytest.fixture(scope="module")
def work(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages assume it: runs/ of all stages, photos, a photo, the first shard of a cache."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "photos" / "cat").mkdir(parents=True)
    for i in range(8):
        Image.linear_gradient("L").resize((16, 16)).rotate(45 * i).convert("RGB").save(folder / f"photos/cat/{i}.png")
    (folder / "runs").mkdir()
    for stage in ("generator", "tokenizer"):
        (folder / "runs" / stage).symlink_to(saved / stage)
    run = RunOptions(device="cpu", workers=0)
    tokenize_dataset(str(saved / "tokenizer"), str(folder / "photos"), folder / "runs" / "cache", run=run)
    (folder / "shard-00000.safetensors").symlink_to("runs/cache/shard-00000.safetensors")
    (folder / "photo.jpg").symlink_to("photos/cat/1.png")
    return folder


def run_python(code: str, names: dict[str, Any], model: str, saved: Path) -> None:
    """Run code that names the bundled model and its classes; "tiny" puts the fixture's in their place."""
    if model == "tiny":
        code = code.replace('"bundled"', repr(str(saved / "pipeline")))
        code = re.sub('"golden retriever"|"school bus"', '"dogs"', code)
    exec(compile(code, "<docs>", "exec"), names)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_of_a_page_runs_from_top_to_bottom(
    page: Path, model: str, work: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    names: dict[str, Any] = {"CodeCache": CodeCache, "ShuffledBatches": ShuffledBatches, "DataLoader": DataLoader}
    names |= {"rank": 0, "world_size": 1, "first_step": 0, "steps": 1}
    given = len(names)
    for mark, code in blocks(page, "python"):
        if "needs" in mark:
            compile(code, str(page), "exec")
        else:
            run_python(code, names, model, saved)
            assert len(names) > given  # what the block made


@pytest.mark.parametrize("model", MODELS)
def test_the_readmes_first_lines_make_its_image(
    model: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (_, first), *others = blocks(ROOT / "README.md", "python")
    run_python(first, {}, model, saved)
    grid, shown = Image.open("samples.png"), Image.open(ROOT / "docs" / "sample.png")
    assert model == "tiny" or grid.size == shown.size
    assert all("needs" in mark for mark, _ in others)


@pytest.mark.parametrize("model", MODELS)
def test_the_notebook_runs_from_top_to_bottom(model: str, saved: Path) -> None:
    cells = json.loads((ROOT / "docs" / "coda.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            run_python("".join(cell["source"]), names, model, saved)
    assert len(names["images"]) == len(names["classes"])


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the site needs mkdocs-material and mkdocstrings: pip install '.[docs]'")
    if not (ROOT / "build" / "mypy" / "coda").is_dir():
        pytest.skip("the API pages read build/mypy, which `make check` makes")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "api" / "tokenizer.html").read_text()
    assert 'id="coda.tokenizer.CodaTokenizer.encode"' in page
