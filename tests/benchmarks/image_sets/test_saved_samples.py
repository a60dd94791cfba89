from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coda.benchmarks.image_sets.image_set import open_image_set
from coda.benchmarks.image_sets.saved_samples import SavedSamples
from coda.benchmarks.settings import MeasureSettings
from coda.tokenizer import CodaError


def save_samples(folder: Path, listing: Any = None) -> Path:
    """Three samples and a grid, as `coda sample` leaves them."""
    folder.mkdir()
    names = ["207-golden-retriever-seed0.png", "207-golden-retriever-seed1.png", "seed0.png"]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / name)
    Image.new("RGB", (16, 8)).save(folder / "grid.png")
    entries = [{"file": name, "class": label, "seed": 0} for name, label in zip(names, [207, 207, None], strict=True)]
    (folder / "samples.json").write_text(json.dumps({"images": entries} if listing is None else listing))
    return folder


@pytest.mark.parametrize("part", ["", "[:3]"])
def test_samples_are_those_that_are_listed(part: str, tmp_path: Path) -> None:
    images = open_image_set(f"{save_samples(tmp_path / 'samples')}{part}")
    ((pixels, labels),) = images.batches(8)
    assert pixels.shape == (3, 3, 8, 8)  # not the grid
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert labels.tolist() == [207, 207, -1]


def test_the_older_listing_is_read(tmp_path: Path) -> None:
    folder = save_samples(tmp_path / "samples", {"pictures": [{"file": "seed0.png", "class": None}]})
    assert len(open_image_set(folder)) == 1


def test_a_missing_sample_is_reported(tmp_path: Path) -> None:
    folder = save_samples(tmp_path / "samples")
    (folder / "seed0.png").unlink()
    images = open_image_set(folder)
    ((_, labels),) = images.batches(8)
    assert len(labels) == 2
    assert [item.key for item in images.skipped] == ["seed0.png"]
    with pytest.raises(CodaError, match=r"seed0\.png, has 8 x 8 pixels"):
        list(open_image_set(folder, settings=MeasureSettings(max_pixels=63)).batches(8))


@pytest.mark.parametrize(
    "listing",
    [
        {"images": [{"file": "../other.png"}]},
        {"images": [{"file": "/etc/passwd.png"}]},
        {"images": [{"file": ".hidden.png"}]},
        {"images": [{"file": 3}]},
        {"images": [{}]},
        {"images": ["seed0.png"]},
        {"images": [{"file": "seed0.png", "class": "dog"}]},
        {"images": 1},
        {},
        [],
    ],
)
def test_a_damaged_listing_is_refused(listing: Any, tmp_path: Path) -> None:
    with pytest.raises(CodaError, match=r"samples\.json") as raised:
        SavedSamples(save_samples(tmp_path / "samples", listing))
    assert "\n" not in str(raised.value)
