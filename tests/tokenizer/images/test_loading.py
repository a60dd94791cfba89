from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import (
    BrokenImage,
    ImageBatch,
    ImageDataset,
    ImageSource,
    decode_image,
    image_batches,
    open_images,
    to_unit,
    training_batches,
)

COUNT, BAD = 20, (3, 8, 9, 10, 11, 19)


def save(folder: Path, count: int = COUNT, bad: tuple[int, ...] = BAD) -> ImageSource:
    """Noise, 12 by 10 pixels, so that all crops differ."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(random.integers(256, size=(10, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
        path.write_bytes(b"" if i in bad else buffer.getvalue())
    return open_images(folder)


def equal(a: list[ImageBatch], b: list[ImageBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.pixels, y.pixels)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.indices, y.indices)
        and x.keys == y.keys
        and x.skipped == y.skipped
        for x, y in zip(a, b, strict=True)
    )


def test_going_through_once_gives_every_item_or_its_reason_exactly_once(tmp_path: Path) -> None:
    source = save(tmp_path)
    broken = {i for i in range(COUNT) if source.key(i) in {f"{i % 2}/{i:02d}.png" for i in BAD}}
    batches = list(image_batches(source, 8, 3))
    given = [int(i) for batch in batches for i in batch.indices]
    skipped = [item for batch in batches for item in batch.skipped]
    assert given == [i for i in range(COUNT) if i not in broken]
    assert [item.index for item in skipped] == sorted(broken)
    assert all(item.reason == "is empty" and item.key == source.key(item.index) for item in skipped)
    assert all(len(batch) for batch in batches)
    for batch in batches:
        assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape[1:] == (3, 8, 8)
        for image, label, key, i in zip(batch.pixels, batch.labels, batch.keys, batch.indices.tolist(), strict=True):
            assert torch.equal(image, decode_image(source.read(i), 8))
            assert (int(label), key) == (source.label(i), source.key(i))


def test_the_items_asked_for_come_in_their_order(tmp_path: Path) -> None:
    batches = list(image_batches(save(tmp_path, bad=()), 8, 4, indices=torch.tensor([7, 2, 2, 15, 0])))
    assert [batch.indices.tolist() for batch in batches] == [[7, 2, 2, 15], [0]]
    assert torch.equal(batches[0].pixels[1], batches[0].pixels[2])


def test_a_source_that_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    source = save(tmp_path, count=4, bad=(0, 1, 2, 3))
    with pytest.raises(CodaError, match=r"no image in .* can be read; the first, 0/00\.png, is empty"):
        list(image_batches(source, 8, 2))
    with pytest.raises(CodaError, match="hardly any image in"):
        list(training_batches(source, 8, 2, seed=0, start_step=0, steps=1))


def test_strict_stops_at_the_first_that_cannot_be_read(tmp_path: Path) -> None:
    source = save(tmp_path)
    first = next(i for i in range(COUNT) if (tmp_path / source.key(i)).stat().st_size == 0)
    for batches in (
        image_batches(source, 8, 3, strict=True),
        image_batches(source, 8, 3, strict=True, workers=1),
        training_batches(source, 8, 3, seed=0, start_step=0, steps=20, strict=True),
    ):
        with pytest.raises(CodaError) as error:
            list(batches)
        assert str(error.value).endswith(".png in " + source.location + " is empty")
    given = [int(i) for batch in image_batches(source, 8, 1, indices=range(first + 1)) for i in batch.indices]
    assert given == list(range(first))


def test_without_a_size_all_images_must_have_one(tmp_path: Path) -> None:
    source = save(tmp_path, bad=())
    assert next(image_batches(source, None, 4)).pixels.shape == (4, 3, 10, 12)
    Image.new("RGB", (5, 5)).save(tmp_path / "0" / "02.png")
    with pytest.raises(CodaError, match="images of 5x5 and 12x10; give a size"):
        list(image_batches(source, None, 4))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_loading_processes_changes_nothing(tmp_path: Path, workers: int) -> None:
    source = save(tmp_path)
    training = {"seed": 5, "start_step": 2, "steps": 9}
    assert equal(
        list(training_batches(source, 8, 4, **training)),
        list(training_batches(source, 8, 4, workers=workers, **training)),
    )
    assert equal(
        list(image_batches(source, 8, 3, crop="random")),
        list(image_batches(source, 8, 3, crop="random", workers=workers)),
    )


def test_a_training_resumed_sees_what_it_would_have_seen(tmp_path: Path) -> None:
    source = save(tmp_path)
    whole = list(training_batches(source, 8, 3, seed=1, start_step=0, steps=16))
    for step in (1, 7, 15, 16):
        assert equal(whole[step:], list(training_batches(source, 8, 3, seed=1, start_step=step, steps=16)))
    assert not equal(whole, list(training_batches(source, 8, 3, seed=2, start_step=0, steps=16)))


def test_every_epoch_of_a_training_visits_every_item_once_in_another_order(tmp_path: Path) -> None:
    source = save(tmp_path, bad=())
    batches = list(training_batches(source, 8, 3, seed=0, start_step=0, steps=20))  # three epochs of 20
    seen = torch.cat([batch.indices for batch in batches]).reshape(3, COUNT)
    assert all(torch.equal(epoch.sort().values, torch.arange(COUNT)) for epoch in seen)
    assert not torch.equal(seen[0], seen[1])
    assert [batch.labels.tolist() for batch in batches] == [[source.label(int(i)) for i in b.indices] for b in batches]


def test_an_item_is_cropped_and_mirrored_differently_each_time(tmp_path: Path) -> None:
    source = save(tmp_path, count=2, bad=())
    batches = training_batches(source, 8, 2, seed=0, start_step=0, steps=30)
    views = {image.numpy().tobytes() for batch in batches for image in batch.pixels[batch.indices == 0]}
    assert len(views) > 8
    plain = training_batches(source, 8, 2, seed=0, start_step=0, steps=5, crop="center", flip=False)
    assert len({image.numpy().tobytes() for batch in plain for image in batch.pixels}) == 2


def test_training_batches_are_full_in_spite_of_broken_items(tmp_path: Path) -> None:
    source = save(tmp_path)
    batches = list(training_batches(source, 8, 4, seed=0, start_step=0, steps=10))
    assert all(len(batch) == len(batch.pixels) == 4 for batch in batches)
    skipped = [item.index for batch in batches for item in batch.skipped]
    asked = {i for i in range(COUNT) if (tmp_path / source.key(i)).stat().st_size == 0}
    assert set(skipped) == asked and len(skipped) >= 2 * len(asked)  # two epochs
    assert not asked & {int(i) for batch in batches for i in batch.indices}


def test_processes_share_every_batch_out_among_them(tmp_path: Path) -> None:
    source = save(tmp_path)
    whole = list(training_batches(source, 8, 4, seed=0, start_step=0, steps=5))
    shares = [list(training_batches(source, 8, 4, seed=0, start_step=0, steps=5, process=(rank, 2))) for rank in (0, 1)]
    for batch, one, two in zip(whole, *shares, strict=True):
        assert torch.equal(batch.pixels, torch.stack([one.pixels, two.pixels], dim=1).flatten(0, 1))


def test_the_data_set_gives_single_images(tmp_path: Path) -> None:
    source = save(tmp_path)
    dataset = ImageDataset(source, 8)
    image, label = dataset[0]
    assert len(dataset) == COUNT
    assert torch.equal(image, to_unit(decode_image(source.read(0), 8))) and label == source.label(0)
    shaken = ImageDataset(source, 8, crop="random", flip=True, seed=1)
    assert torch.equal(shaken[0][0], shaken[0][0])
    bad = next(i for i in range(COUNT) if (tmp_path / source.key(i)).stat().st_size == 0)
    with pytest.raises(BrokenImage):
        dataset[bad]


class FailingStorage(ImageSource):
    """A source whose disk gives up."""

    kind, location = "failing storage", "nowhere"

    def __len__(self) -> int:
        return 4

    def read(self, i: int) -> bytes:
        raise OSError(5, "Input/output error")

    def key(self, i: int) -> str:
        return str(i)

    def label(self, i: int) -> int:
        return -1

    def identity(self, i: int) -> str:
        return ""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_disk_stops_the_work_and_skips_nothing(workers: int) -> None:
    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error$"):
        list(image_batches(FailingStorage(), 8, 2, workers=workers))
