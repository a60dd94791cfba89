from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import open_images

from .conftest import GOLDEN, TENCH, WNIDS, jpeg, listed, problems, save_parquet, save_tar, shade


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
