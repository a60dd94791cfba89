"""What is uploaded to the hub, without a network: the uploader is replaced, everything before it runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers.utils import hub_utils
from huggingface_hub import HfApi, ModelCard

from coda.benchmarks.reports.report import Figure, Report
from coda.pipeline import CodaPipeline
from coda.tokenizer import CodaError, CodaTokenizer

RESULTS = Report("rFID", [Figure("psnr", 22.8, "dB"), Figure("fd", 57.6), Figure("none", None)], {}).to_eval_results(
    "image-to-image", "ImageNet, 166 images"
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads land: a folder per repository, and `options` in a file beside."""

    def create_repo(self: HfApi, repo_id: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: str | Path, **options: Any) -> str:
        if repo_id == "me/refused":
            raise ValueError("403 Forbidden\nmore")
        shutil.copytree(folder_path, tmp_path / repo_id)
        return f"https://hub/{repo_id} {options}"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return tmp_path


def figures(folder: Path) -> list[tuple[str, float]]:
    found = ModelCard.load(folder / "README.md").data.eval_results
    return [(result.metric_type, result.metric_value) for result in found]


def test_a_tokenizer_comes_back_with_its_figures(pipeline: CodaPipeline, hub: Path) -> None:
    commit = pipeline.tokenizer.push_to_hub("me/tokenizer", RESULTS, private=True, commit_message="First")
    assert "me/tokenizer" in commit and "First" in commit
    assert CodaTokenizer.from_pretrained(hub / "me/tokenizer").fingerprint == pipeline.tokenizer.fingerprint
    assert figures(hub / "me/tokenizer") == [("psnr", 22.8), ("fd", 57.6)]


def test_a_pipeline_comes_back_with_its_figures(pipeline: CodaPipeline, hub: Path) -> None:
    pipeline.push_to_hub("me/animals", results=RESULTS)
    card = ModelCard.load(hub / "me/animals/README.md")
    assert card.data.pipeline_tag == "unconditional-image-generation" and card.data.model_name == "animals"
    assert figures(hub / "me/animals") == [("psnr", 22.8), ("fd", 57.6)]
    assert 'CodaPipeline.from_pretrained("me/animals")' in card.text
    CodaPipeline.from_pretrained(hub / "me/animals")


def test_a_generator_and_its_scheduler_come_back(
    pipeline: CodaPipeline, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload_folder(*, repo_id: str, folder_path: str, path_in_repo: str | None, **options: Any) -> str:
        return str(shutil.copytree(folder_path, hub / repo_id / (path_in_repo or ""), dirs_exist_ok=True))

    create_repo = SimpleNamespace(repo_id="me/generator")
    monkeypatch.setattr(hub_utils, "create_repo", lambda *args, **options: create_repo)
    monkeypatch.setattr(hub_utils, "upload_folder", upload_folder)
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *args, **options: ModelCard("# A generator"))
    pipeline.transformer.push_to_hub("me/generator")
    pipeline.scheduler.push_to_hub("me/generator", subfolder="scheduler")
    loaded = CodaPipeline.from_parts(hub / "me/generator", pipeline.tokenizer)
    assert loaded(0, generator=0, output_type="codes").images.equal(
        pipeline(0, generator=0, output_type="codes").images
    )


def test_a_refusal_of_the_hub_is_one_line(pipeline: CodaPipeline, hub: Path) -> None:
    with pytest.raises(CodaError, match=r"^me/refused: the hub did not take it: 403 Forbidden$"):
        pipeline.tokenizer.push_to_hub("me/refused")
