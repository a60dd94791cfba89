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
from typing import Any

from coda.tokenizer.foundation.errors import CodaError, shown
from coda.tokenizer.foundation.progress import log_info
from coda.tokenizer.images import imagenet

_ALL_SHOWN = 20  # as many classes as a message names; of more, the nearest
_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})")  # "007" is a name, not the number 7


@dataclass(frozen=True)
class ImageClass:
    """One class: its index, its WordNet id if it has one, and its names, the usual one first."""

    index: int
    wnid: str | None
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The usual name, or the index if there is none."""
        return self.names[0] if self.names else str(self.index)

    def __str__(self) -> str:
        return f'"{shown(self.name)}" ({self.wnid or self.index})' if self.names else str(self.index)


@cache
def imagenet_classes() -> tuple[ImageClass, ...]:
    """The 1,000 classes of ImageNet-1k in the order of their indices, which is that of their WordNet ids."""
    return tuple(ImageClass(index, entry.wnid, entry.names) for index, entry in enumerate(imagenet.imagenet_classes()))


class ClassTable:
    """The classes a model knows, found by index, WordNet id or name.

    Args:
        classes: One entry per class, in the order of the indices.
        seen: Indices that the model was trained on; None for all. Others are refused.
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
        """The table of a model.

        Args:
            num_classes: Indices are in [0, num_classes).
            class_names: One name or WordNet id per index; classes without a name are found by index only.
            seen: Indices that the model was trained on; None for all.
        """
        of_wnid = {entry.wnid: entry for entry in imagenet_classes()}
        names = [*(class_names or ())][:num_classes]
        classes = []
        for index, name in enumerate([*names, *[""] * (num_classes - len(names))]):
            known = of_wnid.get(name)
            parts = known.names if known else tuple(part.strip() for part in name.split(",") if part.strip())
            classes.append(ImageClass(index, name if known else None, parts))
        return cls(classes, seen)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> ImageClass:
        return self.classes[index]

    def find(self, word: int | str) -> int:
        """The index of a class.

        Args:
            word: An index (207 or "207"), a WordNet id ("n02099601") or a name ("golden retriever"), in any case. A
                number is an index; only a number that is out of range may be a name.

        Raises:
            CodaError: If there is no such class (the message has the nearest names), several have that name,
                or the model was not trained on it.
        """
        if not self.seen:
            raise CodaError("this model has no classes: sample without one")
        index = self._index_of(word)
        if index not in self._is_seen:
            name = self.classes[index].name
            raise CodaError(f"this model has never seen class {index}, {self.classes[index]}; {self._known(name)}")
        return index

    def find_all(self, words: int | str | Iterable[int | str]) -> list[int]:
        """`find` for one word or several, in their order; a text may name several classes with commas between.

        A name with commas in it is one class: "tench, Tinca tinca" is index 0. "all" is every class that the model has
        seen, unless one of them has that name.
        """
        several = words.tolist() if hasattr(words, "tolist") else words  # an array or a tensor
        found: list[int] = []
        for word in [several] if isinstance(several, str) or not isinstance(several, Iterable) else several:
            parts: Sequence[Any] = word.split(",") if isinstance(word, str) else [word]
            while parts:
                names = (n for n in range(len(parts), 1, -1) if _plain(",".join(parts[:n])) in self._of_word)
                taken = next(names, 1)  # the longest text that is a name
                if taken == 1 and self._means_all(parts[0]):
                    found += self.seen
                else:
                    found.append(self.find(",".join(parts[:taken]) if taken > 1 else parts[0]))
                parts = parts[taken:]
        return found

    def _means_all(self, word: int | str) -> bool:
        return isinstance(word, str) and _plain(word) == "all" and "all" not in self._of_word

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
            raise CodaError(f"class {word!r}: expected an index, a WordNet id or a name")
        text = str(word).strip()
        named = self._of_word.get(_plain(text), [])
        if not isinstance(word, str) or (_NUMBER.fullmatch(text) and (int(text) in range(len(self)) or not named)):
            if not 0 <= int(word) < len(self):
                raise CodaError(f"class {word} does not exist: indices go from 0 to {len(self) - 1}")
            if isinstance(word, str):
                self._report_number(text, named)
            return int(word)
        named = [index for index in named if index in self._is_seen] or named  # "crane": the one that the model knows
        if len(named) == 1:
            return named[0]
        if named:
            several = ", ".join(f"{index} {self.classes[index].wnid or ''}".strip() for index in named)
            raise CodaError(f'"{shown(word)}" names {len(named)} classes ({several}): use the index or the WordNet id')
        kind = "WordNet id" if _WNID.fullmatch(text) else "class"
        near = ", ".join(map(str, self.nearest(word)))
        raise CodaError(f'no {kind} "{shown(word)}"; ' + (f"nearest: {near}" if near else self._known(word)))

    def _report_number(self, text: str, named: Sequence[int]) -> None:
        """Say which class an index means, if it or its class's name could be taken for the other."""
        entry = self.classes[int(text)]
        if entry.name != text and (named or _NUMBER.fullmatch(entry.name)):
            others = f'; the class named "{text}" has index {named[0]}' if named else ""
            log_info(f"class {text} is read as an index, {entry}{others}")

    def _known(self, word: str) -> str:
        """The classes that the model knows; of many, their number and those most like `word`."""
        if len(self.seen) <= _ALL_SHOWN:
            entries = (self.classes[index] for index in self.seen)
            named = (f"{entry.index} {shown(entry.name)}" if entry.names else str(entry.index) for entry in entries)
            return "it knows " + ", ".join(named)
        near = self.nearest(word) or [self.classes[index] for index in self.seen[:3]]
        return f"it knows {len(self.seen):,} classes, for example {', '.join(map(str, near))}"


def find_classes(
    words: int | str | Iterable[int | str],
    class_names: Sequence[str] | None = None,
    seen: Collection[int] | None = None,
) -> list[int]:
    """Indices of classes of ImageNet-1k, or of `class_names`; see `ClassTable.find_all`."""
    if class_names is None:
        return ClassTable(imagenet_classes(), seen).find_all(words)
    return ClassTable.of_model(len(class_names), class_names, seen).find_all(words)


def _plain(word: str) -> str:
    """A spelling that forgives case, underscores and doubled spaces."""
    return " ".join(word.replace("_", " ").lower().split())
