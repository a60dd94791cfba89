"""Which class a user means: an index, a WordNet id or a name.

Nothing here imports torch, so a command line can check its classes before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import Any, NoReturn

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import imagenet

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ImageClass:
    """One class: its index, its WordNet id where it has one, and its names, the usual one first."""

    index: int
    wnid: str | None
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The usual name, or the index where there is none."""
        return self.names[0] if self.names else str(self.index)

    def __str__(self) -> str:
        return f'"{self.name}" ({self.wnid or self.index})' if self.names else str(self.index)


@cache
def imagenet_classes() -> tuple[ImageClass, ...]:
    """The 1,000 classes of ImageNet-1k in the order of their indices, which is that of their WordNet ids."""
    return tuple(ImageClass(index, entry.wnid, entry.names) for index, entry in enumerate(imagenet.imagenet_classes()))


class ClassTable:
    """The classes a model knows, and the words that find them.

    Args:
        classes: One entry per class, in the order of the indices.
        seen: Indices that the model was trained on; None for all. Others exist but are refused.
    """

    def __init__(self, classes: Sequence[ImageClass], seen: Collection[int] | None = None) -> None:
        self.classes = tuple(classes)
        known = range(len(self.classes)) if seen is None else seen
        self.seen = tuple(sorted(index for index in set(known) if 0 <= index < len(self.classes)))
        self._is_seen = frozenset(self.seen)
        self._of_word: dict[str, list[int]] = {}
        for entry in self.classes:
            # WordNet's full line of synonyms finds its class too.
            spellings = {_plain(name) for name in (*entry.names, ", ".join(entry.names)) if name}
            for word in spellings | ({entry.wnid} if entry.wnid else set()):
                self._of_word.setdefault(word, []).append(entry.index)

    @classmethod
    def of_model(
        cls, num_classes: int, class_names: Sequence[str] | None = None, seen: Collection[int] | None = None
    ) -> ClassTable:
        """The table of a model with `num_classes` classes.

        Args:
            num_classes: Indices are in [0, num_classes).
            class_names: One name (or WordNet id) per index. Without any, 1,000 classes are ImageNet's, and so are
                fewer whose labels are ImageNet's indices, as image sources without names give them.
            seen: Indices that the model was trained on; None for all.
        """
        imagenet = imagenet_classes()
        if class_names is None:
            unnamed = (ImageClass(index, None, ()) for index in range(len(imagenet), num_classes))
            return cls([*imagenet[:num_classes], *unnamed], seen)
        of_wnid = {entry.wnid: entry for entry in imagenet}
        classes = []
        for index in range(num_classes):
            name = class_names[index] if index < len(class_names) else ""
            known = of_wnid.get(name)
            names = known.names if known else tuple(part.strip() for part in name.split(",") if part.strip())
            classes.append(ImageClass(index, name if known else None, names))
        return cls(classes, seen)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> ImageClass:
        return self.classes[index]

    def find(self, word: int | str) -> int:
        """The index of the class that `word` means.

        Args:
            word: An index (207 or "207"), a WordNet id ("n02099601") or a name ("golden retriever"), in any case.

        Raises:
            CodaError: There is no such class (the message has the nearest names), several have that name, or the
                model has never seen it.
        """
        index = self._index_of(word)
        if index not in self._is_seen:
            examples = self._examples(self.classes[index].name)
            _refuse(
                f"this model has never seen class {index}, {self.classes[index]}; it knows {len(self.seen)} classes, "
                f"for example {examples}"
            )
        return index

    def find_all(self, words: int | str | Iterable[int | str]) -> list[int]:
        """`find` for one word or several, in their order; a text may name several classes with commas between.

        Names with commas in them are found too: "tench, Tinca tinca" is one class, as the longest text that is a name.
        """
        several = words.tolist() if hasattr(words, "tolist") else words  # an array or a tensor
        found = []
        for word in [several] if isinstance(several, int | str) else several:
            parts: Sequence[Any] = word.split(",") if isinstance(word, str) else [word]
            while parts:
                names = (n for n in range(len(parts), 1, -1) if _plain(",".join(parts[:n])) in self._of_word)
                taken = next(names, 1)
                found.append(self.find(",".join(parts[:taken]) if taken > 1 else parts[0]))
                parts = parts[taken:]
        return found

    def nearest(self, word: str, count: int = 3) -> list[ImageClass]:
        """Classes the model has seen whose names are most like `word`: those that contain it first."""
        plain = _plain(word)
        spelled = {_plain(name): index for index in reversed(self.seen) for name in self.classes[index].names}
        containing = sorted((name for name in spelled if plain and plain in name), key=lambda name: (len(name), name))
        alike = difflib.get_close_matches(plain, spelled, n=4 * count, cutoff=0.5)
        indices = dict.fromkeys(spelled[name] for name in [*containing, *alike])
        return [self.classes[index] for index in list(indices)[:count]]

    def _index_of(self, word: int | str) -> int:
        if isinstance(word, bool) or not isinstance(word, Integral | str):
            _refuse(f"class {word!r}: give an index, a WordNet id or a name")
        if not isinstance(word, str):
            return self._in_range(int(word))
        found = self._of_word.get(_plain(word), [])
        found = [index for index in found if index in self._is_seen] or found  # "crane": the one that the model knows
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            several = ", ".join(f"{index} {self.classes[index].wnid or ''}".strip() for index in found)
            _refuse(f'"{word}" names {len(found)} classes ({several}): give the index or the WordNet id')
        # "007" is a string that names nothing, not the number 7.
        if re.fullmatch(r"-?(0|[1-9]\d*)", word.strip()):
            return self._in_range(int(word))
        kind = "WordNet id" if _WNID.fullmatch(word.strip()) else "class"
        _refuse(f'no {kind} "{word}"; nearest: {self._examples(word)}')

    def _in_range(self, index: int) -> int:
        if not 0 <= index < len(self.classes):
            _refuse(f"class {index} does not exist: indices go from 0 to {len(self.classes) - 1}")
        return index

    def _examples(self, word: str) -> str:
        near = self.nearest(word) or [self.classes[index] for index in self.seen[:3]]
        return ", ".join(map(str, near))


def find_classes(
    words: int | str | Iterable[int | str],
    class_names: Sequence[str] | None = None,
    seen: Collection[int] | None = None,
) -> list[int]:
    """Indices of the classes that `words` mean, in ImageNet-1k or in `class_names`; see `ClassTable.find`."""
    return ClassTable.of_model(1000 if class_names is None else len(class_names), class_names, seen).find_all(words)


def _plain(word: str) -> str:
    """A spelling that forgives case, underscores and doubled spaces."""
    return " ".join(word.replace("_", " ").lower().split())


def _refuse(message: str) -> NoReturn:
    raise CodaError(message)
