from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import open_images

from .conftest import WNIDS, jpeg, listed, save, save_parquet, save_tar


def make_folder(root: Path) -> str:
    return str(save(root / "data", *(f"{i % 3}/{i:02d}.jpg" for i in range(9))))


def make_flat(root: Path) -> str:
    return str(save(root / "data", *(f"{i:02d}.jpg" for i in range(9))))


def make_tar(root: Path) -> str:
    members = [(f"{i}.{kind}", content) for i in range(9) for kind, content in (("jpg", jpeg(i)), ("cls", b"%d" % i))]
    return str(save_tar(root / "data" / "x.tar", members))


def make_parquet(root: Path) -> str:
    return str(save_parquet(root / "data" / "x.parquet", range(9), list(range(9)), row_group_size=4))


KINDS = pytest.mark.parametrize("make", [make_folder, make_flat, make_tar, make_parquet])


@KINDS
@pytest.mark.parametrize("which", ["[:4]", "[4:]", "[-2:]", "[2:5]", "[:-8]", "[:]", "[3:100]"])
def test_a_slice_takes_that_part_of_the_items(tmp_path: Path, make: Callable[[Path], str], which: str) -> None:
    whole = open_images(make(tmp_path))
    part = open_images(whole.location + which)
    places = eval(f"list(range(9)){which}")
    assert listed(part) == [(whole.key(i), whole.label(i)) for i in places]
    assert [part.read(i) for i in range(len(part))] == [whole.read(i) for i in places]
    assert (part.num_classes, part.class_names, part.location) == (
        whole.num_classes,
        whole.class_names,
        whole.location + which,
    )


@KINDS
def test_an_empty_slice_is_an_error(tmp_path: Path, make: Callable[[Path], str]) -> None:
    with pytest.raises(CodaError, match=r"\[9:\] holds no images: .* has 9"):
        open_images(make(tmp_path) + "[9:]")


@KINDS
def test_the_fingerprint_is_that_of_the_data_not_of_their_place(tmp_path: Path, make: Callable[[Path], str]) -> None:
    location = make(tmp_path / "a")
    source = open_images(location)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    elsewhere = location.replace(str(tmp_path / "a"), str(tmp_path / "b"))
    prints = [open_images(where).fingerprint for where in (location, elsewhere, location + "[1:]", location + "[:8]")]
    assert source.fingerprint == prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert len(open_images(location + "[:5]").fingerprint) == 64


def test_a_changed_image_or_label_changes_the_fingerprint(tmp_path: Path) -> None:
    location = make_folder(tmp_path)
    before = open_images(location).fingerprint
    image = tmp_path / "data" / "1" / "04.jpg"
    image.write_bytes(image.read_bytes()[:-1] + b" ")
    os.utime(image, ns=(0, 10**18))
    longer = open_images(location).fingerprint
    assert open_images(location, max_pixels=10).fingerprint != longer  # other images are skipped
    (tmp_path / "data" / "1").rename(tmp_path / "data" / "other")
    assert len({before, longer, open_images(location).fingerprint}) == 3
    one, two = (save_parquet(tmp_path / name / "x.parquet", [1, 2], [label, 3]) for name, label in (("a", 1), ("b", 2)))
    assert open_images(one).fingerprint != open_images(two).fingerprint


def test_a_source_can_be_opened(tmp_path: Path) -> None:
    source = open_images(make_flat(tmp_path))
    assert open_images(source) is source
    assert source.describe() == f"9 images in {source.location} (flat folder, no labels)"


def test_a_name_with_brackets_is_taken_as_it_is_where_it_exists(tmp_path: Path) -> None:
    assert len(open_images(save(tmp_path / "odd[:1]", "a.jpg", "b.jpg"))) == 2


def test_places_with_several_or_no_sources_are_errors(tmp_path: Path) -> None:
    make_tar(tmp_path)
    make_parquet(tmp_path)
    save_tar(tmp_path / "splits" / "train-0.tar", [("a.jpg", jpeg(0))])
    save_tar(tmp_path / "splits" / "val-0.tar", [("a.jpg", jpeg(0))])
    (tmp_path / "photo.jpg").write_bytes(jpeg(0))
    for name, message in [
        ("data", r"holds \.tar and \.parquet files; name those you mean: '.*/\*\.tar'"),
        ("splits", r"holds files of train and val; name those you mean: '.*/train\*\.tar'"),
        ("nothing", "nothing does not exist"),
        ("nothing[:3]", "nothing does not exist"),
        ("photo.jpg", r"photo\.jpg is neither a folder of images nor"),
        ("data/*", "is neither a folder of images nor"),
    ]:
        with pytest.raises(CodaError, match=message):
            open_images(tmp_path / name)


def test_the_real_data_open_in_all_their_forms(shared_data: Path) -> None:
    table = open_images(shared_data / "tiny-imagenet" / "train-{00000..00001}.parquet")
    archive = open_images(shared_data / "tiny-imagenet" / "webdataset-00000.tar")
    folder = open_images(f"{shared_data}/imagenet-sample-256[650:]")
    assert (len(table), len(archive), len(folder)) == (10_000, 1_000, 166)
    for i in (0, 500, 999):  # the archive holds the table's first images once more
        assert archive.read(i) == table.read(i) and archive.label(i) == table.label(i)
        assert WNIDS[table.label(i)] in table.key(i)
    assert all(WNIDS[folder.label(i)] == folder.key(i).split("/")[0] for i in range(166))
