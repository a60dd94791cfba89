from __future__ import annotations

import io
import json
import os
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


def save_parquet(
    path: Path, shades: Sequence[int | None], labels: Any = None, names: list[str] | None = None, **options: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": None if shade is None else jpeg(shade), "path": f"{shade}.jpg"} for shade in shades]
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    table = pa.table(columns)
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, **options)
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
    with pytest.raises(CodaError, match="at most 1,000,000 are allowed"):
        open_images("s-{0..999999999999}.tar")


def test_members_that_are_not_images_are_named_and_nothing_is_extracted(tmp_path: Path) -> None:
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
        "s.tar/device.jpg": "is not a regular file",
        "s.tar/../leaves.jpg": "its path leads out of the archive",
        "s.tar//absolute.jpg": "its path leads out of the archive",
        "s.tar/label-only": "the sample has no image",
        "s.tar/odd-label.jpg": "its label 'cat' is not a class index",
    }
    assert len(source) == 8
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["s.tar", "secret.jpg", "x"]


def tar_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124 : 124 + len(size)], block[156:157], block[257:263] = size, kind, b"ustar\0"
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


def pax(*records: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    content = b"".join(b"%d %s\n" % (len(record) + 2 + len(str(len(record) + 4)), record) for record in records)
    header = tar_header("pax", b"%011o" % (len(content) if size is None else size), kind)
    return header + content + bytes(-len(content) % 512)


PLAIN = tar_header("b.jpg", b"%011o" % 1000) + b"x" * 1024
CUT, BEYOND = "cut short or damaged after a.jpg", "the archive ends within it"


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (b"", CUT),  # the end mark is missing
        (PLAIN[:100], CUT),
        (PLAIN[:800], BEYOND),
        (b"\xff" * 100 + PLAIN[100:], CUT),
        (tar_header("b.jpg", b"\xff" * 11 + b"\x00"), CUT),  # a negative size leads back to the start
        (tar_header("b.jpg", b"\x80" + b"\x7f" * 11), BEYOND),
        (tar_header("b.jpg", b"-0000001000"), CUT),
        (tar_header("b.jpg", b"99999999999"), CUT),
        (pax(b"size=-1024") + PLAIN, CUT),
        (pax(b"size=" + b"9" * 300) + PLAIN, CUT),
        (pax(b"size=99999999999999999999") + PLAIN, BEYOND),
        (pax(b"size=nan") + PLAIN, CUT),
        (pax(b"path=" + b"x" * 100_000 + b".jpg") + PLAIN, CUT),
        (pax(b"path=b.jpg", size=8 * 2**30) + PLAIN, CUT),
        (pax(b"path=b.jpg", size=2**20 + 1) + PLAIN + bytes(2**21), CUT),
        (pax(b"path=b.jpg", size=2**30, kind=b"L") + PLAIN, CUT),
        (pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"path=b.jpg") + PLAIN + bytes(512), "not a regular file"),
        (tar_header("b.jpg", b"00000001000", b"S")[:482] + b"\1" + bytes(29) + PLAIN, CUT),
        (pax(b"comment=x") * 3000 + tar_header("b.jpg", b"", b"6") + bytes(512), "not a regular file"),
    ],
)
def test_damage_to_an_archive_loses_only_what_comes_after(tmp_path: Path, after: bytes, problem: str) -> None:
    path = tmp_path / "s.tar"
    first = jpeg(50)
    path.write_bytes(tar_header("a.jpg", b"%011o" % len(first)) + first + bytes(-len(first) % 512) + after)
    source = open_images(path)
    assert shade(source, 0) == 50
    (found,) = problems(source).values()
    assert problem in found and len(source) == 2


def test_names_of_any_length_and_large_sizes_are_read(tmp_path: Path) -> None:
    names = ["x" * 99 + ".jpg", "deep/" * 40 + "x.jpg", "é" * 100 + ".jpg"]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{format}.tar"
        with tarfile.open(path, "w", format=format, pax_headers={"comment": "all"}) as tar:
            for number, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(jpeg(number * 10)), 1.5
                tar.addfile(info, io.BytesIO(jpeg(number * 10)))
        source = open_images(path)
        assert [(source.key(i), shade(source, i)) for i in range(3)] == [
            (f"{format}.tar/{name}", number * 10) for number, name in enumerate(names)
        ]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["dog.v2.jpg", "dog.v2.cls=3"], {"dog.v2.jpg": 3}),
        (["dog.v1.jpg", "dog.v1.cls=1", "dog.v2.jpg", "dog.v2.cls=2"], {"dog.v1.jpg": 1, "dog.v2.jpg": 2}),
        (["a.jpg", "a.v2.jpg", "a.cls=1", "a.v2.cls=2"], {"a.jpg": 1, "a.v2.jpg": 2}),
        (["a.jpg", "b.jpg", "c.jpg", "a.cls=1", "c.cls=3"], {"a.jpg": 1, "b.jpg": -1, "c.jpg": 3}),
        (["b.cls=2", "a.cls=1", "a.jpg", "b.jpg"], {"a.jpg": 1, "b.jpg": 2}),
        (["a.x.jpg", "b.x.jpg", "a.x.cls=1", "b.cls=2"], {"a.x.jpg": 1, "b.x.jpg": 2}),
        (["a.jpg", "a.cls=-1", "b.jpg", "b.cls=7"], {"a.jpg": -1, "b.jpg": 7}),
        (
            [".a.jpg", "._b.jpg", ".x/c.jpg", "__MACOSX/._b.cls=1", "./b.jpg", "b.cls=1"],
            {"./b.jpg": -1, "b": "no image"},
        ),
        (["a.jpg", "a.fine.cls=1", "a.coarse.cls=2"], {"a.jpg": "has the labels a.fine.cls and a.coarse.cls"}),
        (["a.jpg", "b.jpg", "a.cls=x"], {"a.jpg": "its label 'x' is not a class index", "b.jpg": -1}),
        (["a.heic", "a.cls=1", "b.jpg"], {"a": "the sample has no image", "b.jpg": -1}),
    ],
)
def test_no_label_of_an_archive_is_lost_silently(
    tmp_path: Path, members: list[str], expected: dict[str, int | str]
) -> None:
    contents = [member.partition("=") for member in members]
    path = save_tar(tmp_path / "s.tar", [(name, label.encode() or jpeg(0)) for name, _, label in contents])
    source = open_images(path)
    reasons = problems(source)
    assert len(source) == len(expected)
    for i, (name, label) in enumerate(expected.items()):
        assert source.key(i) == f"s.tar/{name}"
        assert label in reasons[source.key(i)] if isinstance(label, str) else source.label(i) == label


def test_numbers_are_imagenets_where_the_names_of_the_images_say_so(tmp_path: Path) -> None:
    members = [(f"{GOLDEN}_7.jpg", jpeg(0)), (f"{GOLDEN}_7.cls", b"207"), ("x.jpg", jpeg(0))]
    assert open_images(save_tar(tmp_path / "s.tar", members)).class_names == WNIDS
    members += [(f"{TENCH}_7.jpg", jpeg(0)), (f"{TENCH}_7.cls", b"3")]
    source = open_images(save_tar(tmp_path / "t.tar", members))
    assert (source.num_classes, source.class_names) == (208, None)


def test_labels_are_checked_where_they_are_read(tmp_path: Path) -> None:
    for label in (10**12, 2**20, 10**60):
        path = save_tar(tmp_path / "s.tar", [("a.jpg", jpeg(0)), ("a.cls", b"%d" % label)])
        with pytest.raises(CodaError, match=r"s\.tar/a\.jpg: label [\d,]+ is too large.*--num-classes"):
            open_images(path)
    path = save_parquet(tmp_path / "x.parquet", [1, 2], [3, 10**12])
    with pytest.raises(CodaError, match=r"label 1,000,000,000,000 is too large for 1,048,576 classes"):
        open_images(path)
    path = save_parquet(tmp_path / "y.parquet", [1, 2], [0, 2**20])
    assert open_images(path, num_classes=2**21).num_classes == 2**21
    with pytest.raises(CodaError, match="label 1,048,576 is too large for 5 classes"):
        open_images(path, num_classes=5)


def test_an_archive_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = save_tar(tmp_path / "s.tar", [(f"{i}.jpg", jpeg(i * 10)) for i in range(3)])
    source = open_images(path)
    path.write_bytes(path.read_bytes()[:600])
    assert problems(source)["s.tar/2.jpg"] == "the archive ends within it"


def test_other_files_than_plain_archives_are_errors(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello" * 500)
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    for name in ("text.tar", "empty.tar", "packed.tar"):
        with pytest.raises(CodaError, match=f"{name} is not an uncompressed tar archive"):
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
        (None, [1, 3], [1, 3], 4),
        (None, [999, -5], [999, -1], 1000),
        (None, ["dog", "cat"], [1, 0], 2),
        (None, [GOLDEN, None], [207, -1], 1000),
        (None, None, [-1, -1], 0),
        (["cat", "dog"], [-1, -1], [-1, -1], 0),
    ],
)
def test_parquet_labels_mean_what_the_file_says(
    tmp_path: Path, names: list[str] | None, labels: Any, expected: list[int], num_classes: int
) -> None:
    source = open_images(save_parquet(tmp_path / "x.parquet", [10, 20], labels, names))
    assert [source.label(0), source.label(1)] == expected
    assert source.num_classes == num_classes
    if source.class_names is not None:
        assert len(source.class_names) == num_classes


@pytest.mark.parametrize(
    ("first", "second", "names", "labels"),
    [
        (["cat", "dog", "emu"], ["emu", "cat", "dog"], ["cat", "dog", "emu"], [0, 1, 2, 0]),
        (["cat", "dog"], ["emu", "cat"], ["cat", "dog", "emu"], [0, 1, 2, 0]),
        ([TENCH, GOLDEN], [GOLDEN, TENCH], WNIDS, [0, 207, 207, 0]),
        (["cat", "dog"], None, None, None),
        (["cat", "cat"], ["cat", "dog"], None, None),
    ],
)
def test_classes_of_several_files_are_matched_by_name(
    tmp_path: Path, first: list[str], second: list[str] | None, names: list[str] | None, labels: Any
) -> None:
    for file, classes in (("a", first), ("b", second)):
        save_parquet(tmp_path / f"{file}.parquet", [10, 20], [0, 1], names=classes)
    if labels is None:
        with pytest.raises(CodaError, match="does not name its classes as"):
            open_images(tmp_path)
    else:
        source = open_images(tmp_path)
        assert (source.class_names, [source.label(i) for i in range(4)]) == (names, labels)


def test_a_small_table_that_unpacks_to_gigabytes_takes_no_memory(
    tmp_path: Path, mebibytes: Callable[..., float]
) -> None:
    images = [{"bytes": jpeg(0) + bytes(2**20), "path": "x.jpg"}] * 350
    for name, table, options in [
        ("repeated", {"image": images}, {}),
        ("plain", {"image": images}, {"use_dictionary": False}),
        ("label", {"image": [jpeg(0)] * 300, "label": ["x" * 2**20] * 300}, {}),
    ]:
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet", compression="zstd", **options)
    save_parquet(tmp_path / "small.parquet", range(3), ["a", "b", "c"])
    prepare = """
from coda.tokenizer.images import BrokenImage, open_images

def read_last(name):
    try:
        source = open_images(f"{sys.argv[1]}/{name}.parquet")
        source.read(len(source) - 1)
    except BrokenImage as error:
        assert "unpacks to" in str(error), error

read_last("small")
"""
    assert mebibytes(prepare, "for name in ('repeated', 'plain', 'label'): read_last(name)", tmp_path) < 250


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
    save_parquet(tmp_path / "few.parquet", [10], [1], names=["cat"])
    for name, message in [
        ("cut", "is not a parquet file, or is cut short"),
        ("text", "has no column of images.* its columns are text, label"),
        ("floats", "they must be integers or names"),
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
