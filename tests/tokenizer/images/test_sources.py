from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import BrokenImage, ImageSource, decode_image, open_images
from coda.tokenizer.images.imagenet import imagenet_classes

GOLDEN, TENCH = "n02099601", "n01440764"  # ImageNet's 207 and 0
WNIDS = [entry.wnid for entry in imagenet_classes()]


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def save(folder: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(shade * 10))
    return folder


def save_tar(path: Path, members: Sequence[tuple[str, bytes]], **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.get(name, {}).items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def save_parquet(path: Path, shades: Sequence[int | None], labels: Any = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": None if shade is None else jpeg(shade), "path": f"{shade}.jpg"} for shade in shades]
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), path, **options)
    return path


def shade(source: ImageSource, i: int) -> int:
    return round(decode_image(source.read(i)).float().mean().item() / 10) * 10


def listed(source: ImageSource) -> list[tuple[str, int]]:
    return [(source.key(i), source.label(i)) for i in range(len(source))]


def problems(source: ImageSource) -> dict[str, str]:
    found = {}
    for i in range(len(source)):
        try:
            source.read(i)
        except BrokenImage as error:
            found[source.key(i)] = str(error)
    return found


# Folders


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


def test_a_flat_folder_has_no_labels_and_leaves_other_files_aside(tmp_path: Path) -> None:
    save(tmp_path, "2.jpg", "1.jpg", ".hidden.jpg", "notes.txt", "no-suffix")
    (tmp_path / "empty").mkdir()
    source = open_images(tmp_path)
    assert listed(source) == [("1.jpg", -1), ("2.jpg", -1)]
    assert (source.num_classes, source.class_names) == (0, None)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    save(tmp_path, "good.jpg", "gone.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = open_images(tmp_path)
    (tmp_path / "gone.jpg").unlink()
    assert problems(source) == {
        "dangling.jpg": "cannot be opened: No such file or directory",
        "gone.jpg": "cannot be opened: No such file or directory",
    }


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", "x.jpg")
    save(tmp_path / "data", "ant/a.jpg")
    (tmp_path / "data" / "bee").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "ant" / "again").symlink_to(tmp_path / "data" / "ant")
    assert listed(open_images(tmp_path / "data")) == [("ant/a.jpg", 0), ("bee/x.jpg", 1)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no images"),
        (["a.jpg", "cat/b.jpg"], "holds both images"),
        (["train/cat/a.jpg", "val/cat/b.jpg"], "holds train and val; name one of them: .*/train"),
    ],
)
def test_a_folder_that_could_mean_several_things_is_an_error(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(CodaError, match=message):
        open_images(save(tmp_path, *files))


# Archives


def test_webdataset_samples_have_their_image_and_their_label(tmp_path: Path) -> None:
    members = [
        ("a.jpg", jpeg(10)),
        ("a.cls", b"7\n"),
        ("a.json", b"{}"),
        ("b.cls", b"207"),
        ("b.png", jpeg(20)),
        ("b.mask.png", jpeg(90)),
        ("dir/c.x.jpg", jpeg(30)),
        ("d.JPEG", jpeg(40)),
        ("d.cls", TENCH.encode()),
    ]
    source = open_images(save_tar(tmp_path / "s.tar", members))
    assert listed(source) == [("s.tar/a.jpg", 7), ("s.tar/b.png", 207), ("s.tar/dir/c.x.jpg", -1), ("s.tar/d.jpeg", 0)]
    assert [shade(source, i) for i in range(4)] == [10, 20, 30, 40]
    assert (source.num_classes, source.class_names) == (1000, WNIDS)
    assert shade(pickle.loads(pickle.dumps(source)), 2) == 30


def test_archives_are_named_by_braces_wildcards_or_their_folder(tmp_path: Path) -> None:
    for number in range(12):
        save_tar(tmp_path / f"s-{number:03d}.tar", [(f"{number}.jpg", jpeg(number * 10))])
    everything = [f"s-{number:03d}.tar/{number}.jpg" for number in range(12)]
    for pattern, expected in [
        ("s-{000..011}.tar", everything),
        ("s-{002,007}.tar", [everything[2], everything[7]]),
        ("s-00{3..5}.tar", everything[3:6]),
        ("s-01?.tar", everything[10:]),
        ("s-[0-9]*.tar[2:4]", everything[2:4]),
        ("", everything),
        ("s-004.tar", everything[4:5]),
    ]:
        source = open_images(tmp_path / pattern if pattern else tmp_path)
        assert [source.key(i) for i in range(len(source))] == expected, pattern
        assert shade(source, 0) == int(expected[0][2:5]) * 10
    for pattern in ("s-{000..012}.tar", "t-*.tar"):
        with pytest.raises(CodaError, match=r"s-012.tar does not exist \(named by|nothing matches"):
            open_images(tmp_path / pattern)
    with pytest.raises(CodaError, match="more than anyone has"):
        open_images("s-{0..999999999999}.tar")


def test_members_that_are_no_pictures_are_named_and_nothing_is_extracted(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(200))
    members = [(f"{name}.jpg", b"") for name in ("sym", "hard", "device")] + [
        ("../leaves.jpg", jpeg(10)),
        ("/absolute.jpg", jpeg(10)),
        ("good.jpg", jpeg(10)),
        ("good.cls", b"3"),
        ("label-only.cls", b"3"),
        ("odd-label.jpg", jpeg(10)),
        ("odd-label.cls", b"cat"),
    ]
    kinds = {
        "sym.jpg": {"type": tarfile.SYMTYPE, "linkname": str(secret)},
        "hard.jpg": {"type": tarfile.LNKTYPE, "linkname": "good.jpg"},
        "device.jpg": {"type": tarfile.CHRTYPE},
    }
    source = open_images(save_tar(tmp_path / "x" / "s.tar", members, **kinds))
    assert problems(source) == {
        "s.tar/sym.jpg": f"is a link to {secret}",
        "s.tar/hard.jpg": "is a link to good.jpg",
        "s.tar/device.jpg": "is no regular file",
        "s.tar/../leaves.jpg": "its path leads out of the archive",
        "s.tar//absolute.jpg": "its path leads out of the archive",
        "s.tar/label-only": "the sample has no image",
        "s.tar/odd-label.jpg": "its label 'cat' is no class index",
    }
    assert len(source) == 8
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["s.tar", "secret.jpg", "x"]


def test_an_archive_cut_short_gives_what_is_whole_and_names_the_rest(tmp_path: Path) -> None:
    whole = save_tar(tmp_path / "s.tar", [(f"{i}.jpg", jpeg(i * 10)) for i in range(3)]).read_bytes()
    block = 512
    data_blocks = -(-len(jpeg(0)) // block)
    member = (1 + data_blocks) * block
    cut = tmp_path / "cut.tar"
    for length, sound, problem in [
        (2 * member + block + 10, 2, "the archive ends within it"),  # within the third picture
        (2 * member + 10, 2, "cut short or damaged after 1.jpg"),  # within its header
        (2 * member, 2, "cut short or damaged after 1.jpg"),  # before its header: the end mark is missing
        (3 * member, 3, "cut short or damaged after 2.jpg"),
    ]:
        cut.write_bytes(whole[:length])
        source = open_images(cut)
        assert len(source) == sound + 1
        assert [shade(source, i) for i in range(sound)] == [0, 10, 20][:sound]
        assert [problem in reason for reason in problems(source).values()] == [True]
    damaged = bytearray(whole)
    damaged[2 * member : 2 * member + 100] = b"\xff" * 100
    cut.write_bytes(damaged)
    assert list(problems(open_images(cut))) == ["cut.tar/(end)"]


def test_an_archive_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = save_tar(tmp_path / "s.tar", [(f"{i}.jpg", jpeg(i * 10)) for i in range(3)])
    source = open_images(path)
    path.write_bytes(path.read_bytes()[:600])
    assert problems(source)["s.tar/2.jpg"] == "the archive ends within it"


def test_what_is_no_plain_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello" * 500)
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    for name in ("text.tar", "empty.tar", "packed.tar"):
        with pytest.raises(CodaError, match=f"{name} is no uncompressed tar archive"):
            open_images(tmp_path / name)


# Parquet


def test_parquet_rows_come_in_order_over_files_and_row_groups(tmp_path: Path) -> None:
    save_parquet(tmp_path / "train-0.parquet", range(0, 70, 10), [5, 999, 0, 1, 2, 3, 4], row_group_size=3)
    save_parquet(tmp_path / "train-1.parquet", range(70, 150, 10), list(range(8)), row_group_size=3)
    source = open_images(tmp_path)
    assert len(source) == 15
    for i in (14, 0, 7, 6, 3, 11):
        assert shade(source, i) == i * 10
    assert (source.key(1), source.label(1)) == ("train-0.parquet/1/10.jpg", 999)
    assert (source.key(14), source.label(14)) == ("train-1.parquet/7/140.jpg", 7)
    assert (source.num_classes, source.class_names) == (1000, WNIDS)
    assert shade(pickle.loads(pickle.dumps(source)), 9) == 90


def test_rows_without_bytes_are_named(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "x.parquet", [10, None, 30], [1, None, -1])
    source = open_images(path)
    assert problems(source) == {"x.parquet/1/None.jpg": "the row has no bytes"}
    assert [source.label(i) for i in range(3)] == [1, -1, -1]
    pq.write_table(pa.table({"image": pa.array([None], pa.struct([("bytes", pa.binary())]))}), path)
    assert problems(open_images(path)) == {"x.parquet/0": "the row has no bytes"}


@pytest.mark.parametrize(
    ("names", "labels", "expected", "num_classes"),
    [
        (["cat", "dog", "emu"], [2, 0], [2, 0], 3),
        ([TENCH, GOLDEN], [1, 0], [207, 0], 1000),
        (None, [1500, 3], [1500, 3], 1501),
        (None, ["dog", "cat"], [1, 0], 2),
        (None, [GOLDEN, None], [207, -1], 1000),
        (None, None, [-1, -1], 0),
        (["cat", "dog"], [-1, -1], [-1, -1], 0),
    ],
)
def test_parquet_labels_mean_what_the_file_says(
    tmp_path: Path, names: list[str] | None, labels: Any, expected: list[int], num_classes: int
) -> None:
    path = save_parquet(tmp_path / "x.parquet", [10, 20], labels)
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    source = open_images(path)
    assert [source.label(0), source.label(1)] == expected
    assert source.num_classes == num_classes
    if source.class_names is not None:
        assert len(source.class_names) == num_classes


def test_images_may_be_a_column_of_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "jpg": [jpeg(10), jpeg(20)], "cls": [4, 5]}), tmp_path / "x.parquet")
    source = open_images(tmp_path / "x.parquet")
    assert [shade(source, i) for i in range(2)] == [10, 20]
    assert listed(source) == [("x.parquet/0", 4), ("x.parquet/1", 5)]


def test_parquet_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    good = save_parquet(tmp_path / "a.parquet", [10], [1])
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:-30])
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "text.parquet")
    save_parquet(tmp_path / "floats.parquet", [10], [1.5])
    save_parquet(tmp_path / "b.parquet", [10])
    table = pq.read_table(good)
    features = {"info": {"features": {"label": {"names": ["cat"]}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "few.parquet")
    for name, message in [
        ("cut", "is no parquet file, or is cut short"),
        ("text", "has no column of images.* its columns are text, label"),
        ("floats", "of type float; they must be integers or names"),
        ("[ab]", "has other columns than"),
        ("few", "label 1 where only 1 classes are named"),
    ]:
        with pytest.raises(CodaError, match=message):
            open_images(tmp_path / f"{name}.parquet")


def test_a_damaged_row_group_loses_its_rows_alone(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "x.parquet", range(0, 60, 10), row_group_size=2, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + 40 : start + column.total_compressed_size] = b"\x55" * (column.total_compressed_size - 40)
    path.write_bytes(content)
    source = open_images(path)
    found = problems(source)
    assert list(found) == ["x.parquet/2/20.jpg", "x.parquet/3/30.jpg"]
    assert all("row group" in reason and "\n" not in reason for reason in found.values())


# All of them


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


def test_a_changed_picture_or_label_changes_the_fingerprint(tmp_path: Path) -> None:
    location = make_folder(tmp_path)
    before = open_images(location).fingerprint
    with open(tmp_path / "data" / "1" / "04.jpg", "ab") as file:
        file.write(b" ")
    longer = open_images(location).fingerprint
    (tmp_path / "data" / "1").rename(tmp_path / "data" / "other")
    assert len({before, longer, open_images(location).fingerprint}) == 3
    one, two = (save_parquet(tmp_path / name / "x.parquet", [1, 2], [label, 3]) for name, label in (("a", 1), ("b", 2)))
    assert open_images(one).fingerprint != open_images(two).fingerprint


def test_a_source_is_its_own_opening(tmp_path: Path) -> None:
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
