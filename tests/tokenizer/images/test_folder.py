from __future__ import annotations

import os
from pathlib import Path

import pytest

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import open_images

from .conftest import GOLDEN, TENCH, WNIDS, jpeg, listed, problems, save, save_tar, shade


def test_a_folder_per_class_is_numbered_in_sorted_order(tmp_path: Path) -> None:
    source = open_images(save(tmp_path, "dog/b.jpg", "dog/a.PNG", "cat/deep/er.jpeg", "cat/z.webp", "ant/x.jpg"))
    assert listed(source) == [
        ("ant/x.jpg", 0),
        ("cat/deep/er.jpeg", 1),
        ("cat/z.webp", 1),
        ("dog/a.PNG", 2),
        ("dog/b.jpg", 2),
    ]
    assert (source.num_classes, source.class_names) == (3, ["ant", "cat", "dog"])
    assert shade(source, 4) == 0 and shade(source, 2) == 30


def test_folders_of_wordnet_ids_have_imagenets_indices(tmp_path: Path) -> None:
    source = open_images(save(tmp_path / "a", f"{GOLDEN}/b.jpg", f"{TENCH}/a.jpg"))
    assert listed(source) == [(f"{TENCH}/a.jpg", 0), (f"{GOLDEN}/b.jpg", 207)]
    assert (source.num_classes, source.class_names) == (1000, WNIDS)
    mixed = open_images(save(tmp_path / "b", f"{GOLDEN}/b.jpg", "n99999999/a.jpg"))
    assert (mixed.num_classes, mixed.class_names) == (2, [GOLDEN, "n99999999"])


def test_a_flat_folder_has_no_labels_and_counts_what_it_ignores(tmp_path: Path) -> None:
    save(tmp_path, "2.jpg", "1.JFIF", ".hidden.jpg", "notes.txt", "no-suffix", "a.heic", "b.HEIC")
    (tmp_path / "empty").mkdir()
    source = open_images(tmp_path)
    assert listed(source) == [("1.JFIF", -1), ("2.jpg", -1)]
    assert (source.num_classes, source.class_names) == (0, None)
    assert source.ignored == {".heic": 2, ".txt": 1, "": 1}
    assert source.describe_ignored().startswith("ignored 2 .heic and 1 unnamed and 1 .txt files")
    assert open_images(f"{tmp_path}[:1]").ignored == source.ignored


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    save(tmp_path, "good.jpg", "gone.jpg", "large.jpg")
    os.truncate(tmp_path / "large.jpg", 300 * 2**20)
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, target in [("dangling", "nowhere.jpg"), ("zero", "/dev/zero"), ("itself", tmp_path / "itself.jpg")]:
        (tmp_path / f"{name}.jpg").symlink_to(target)
    source = open_images(tmp_path)
    (tmp_path / "gone.jpg").unlink()
    assert problems(source) == {
        "dangling.jpg": "cannot be opened: No such file or directory",
        "gone.jpg": "cannot be opened: No such file or directory",
        "itself.jpg": "cannot be opened: Too many levels of symbolic links",
        "large.jpg": "its 314,572,800 bytes are more than any image has",
        "pipe.jpg": "is not a regular file",
        "zero.jpg": "is not a regular file",
    }
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(CodaError, match=r"pipe\.tar is not a regular file"):
        open_images(tmp_path / "pipe.tar")


def test_links_to_folders_are_followed_but_each_folder_is_read_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", "x.jpg")
    data = save(tmp_path / "data", "cat/a.jpg")
    (data / "bee").symlink_to(tmp_path / "elsewhere")
    (data / "ant").symlink_to(data / "cat")  # a real folder counts where it is
    for number in range(18):
        (data / "cat" / f"up{number}").symlink_to(data)
    assert listed(open_images(data)) == [("bee/x.jpg", 0), ("cat/a.jpg", 1)]


SPLITS = "holds splits, not classes"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no images$"),
        (["a.heic", "b.heic"], "holds no images; ignored 2 .heic files"),
        (["a.jpg", "cat/b.jpg"], "holds both images"),
        (["train/cat/a.jpg", "val/cat/b.jpg"], rf"{SPLITS} \(train and val\); give one: .*/train$"),
        (["train/0.jpg", "val/0.jpg"], rf"{SPLITS} \(train and val\)"),
        (["Train/ant/0.jpg", "Test/ant/0.jpg"], rf"{SPLITS} \(Train and Test\); give one: .*/Train$"),
        (["train/ant/0.jpg", "val/ant/0.jpg", "extra/0.jpg"], SPLITS),
        (["train2017/0.jpg", "val2017/0.jpg", "test/0.jpg", "more/0.jpg"], SPLITS),
        (["train/0.jpg"], SPLITS),
        (["train/ant/0.jpg", "more/0.jpg"], SPLITS),
        (["data/train/ant/0.jpg", "data/val/ant/0.jpg"], f"/data {SPLITS}.*/data/train$"),
        (["data/raw/TRAIN/0.jpg"], f"/data/raw {SPLITS}"),
        (["one/train/ant/0.jpg", "one/val/ant/0.jpg", "two/ant/0.jpg"], f"/one {SPLITS}"),
        ([f"data/{TENCH}/0.jpg", f"data/{GOLDEN}/0.jpg"], "one folder down: give .*/data$"),
        (["/".join("d" * 70) + "/0.jpg"], "has folders more than 64 deep, in d$"),
        (["shards/train/s-0.TAR", "readme.md"], "give the folder of its archives: .*/shards/train$"),
        (["data/a.parquet"], "give the folder of its archives: .*/data$"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_an_error(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(CodaError, match=message):
        open_images(save(tmp_path, *files))


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    source = open_images(save(tmp_path, "car/0.jpg", "train/0.jpg", "training shoe/0.jpg"))
    assert source.class_names == ["car", "train", "training shoe"]


def test_names_are_shown_escaped_and_files_still_found(tmp_path: Path) -> None:
    names = ["a\x1b[31m.jpg", "b\n.jpg", "c\udcff.jpg", "d é.jpg"]
    shown = [r"a\x1b[31m.jpg", r"b\n.jpg", r"c\udcff.jpg", "d é.jpg"]
    source = open_images(save(tmp_path / "x\ny", *(f"ant\t/{name}" for name in names)))
    assert [source.key(i) for i in range(4)] == [rf"ant\t/{name}" for name in shown]
    assert (problems(source), source.class_names) == ({}, [r"ant\t"])
    assert source.location.endswith(r"x\ny") and len(source.fingerprint) == 64
    archive = open_images(save_tar(tmp_path / "s.tar", [(name, jpeg(0)) for name in names]))
    assert [archive.key(i) for i in range(4)] == [f"s.tar/{name}" for name in shown]
