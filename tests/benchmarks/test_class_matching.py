from __future__ import annotations

import pytest

from coda.benchmarks.class_matching import class_warnings, find_class, match_classes
from coda.tokenizer import CodaError
from coda.tokenizer.images.imagenet import imagenet_classes

INSECTS = {0: "ant", 1: "bee", 2: "cat"}
IMAGENET = {index: entry.wnid for index, entry in enumerate(imagenet_classes())}


@pytest.mark.parametrize(
    ("label_names", "class_names", "expected"),
    [
        (["bee", "cat"], INSECTS, [1, 2]),
        (["Cat", "ANT"], INSECTS, [0, 2]),
        (["golden_retriever", "bee"], {5: "golden retriever", 6: "bee"}, [5, 6]),
        (["n02123045", "n02099601"], {0: "golden retriever", 1: "tabby, tabby cat"}, [0, 1]),
        (["tabby", "golden retriever"], IMAGENET, [207, 281]),
        (["n02012849", "n03126707"], IMAGENET, [134, 517]),  # both are called crane
        (["1", "0"], {3: "0", 4: "1"}, [3, 4]),  # names that are numbers are names
        (None, {0: "", 1: "", 2: ""}, [0, 1]),
        (None, IMAGENET, [0, 1]),
        (["whatever", "else"], None, [0, 1]),
    ],
)
def test_classes_are_matched_by_name_or_wordnet_id(
    label_names: list[str] | None, class_names: dict[int, str] | None, expected: list[int]
) -> None:
    assert match_classes([0, 1, 1, -1], label_names, class_names)[0] == expected


def test_only_labels_that_occur_count_and_the_report_says_which() -> None:
    indices, how = match_classes([2, 2, 0], ["bee", "unknown", "cat"], INSECTS)
    assert indices == [1, 2]
    assert "bee is class 1" in how and "cat is class 2" in how


@pytest.mark.parametrize(
    ("labels", "label_names", "class_names", "message"),
    [
        ([0, 1], ["bee", "dog"], INSECTS, "does not know: dog"),
        ([0], ["small dog"], {0: "big dog"}, "small dog"),
        ([0], ["dog, small"], {0: "dog, big"}, "dog, small"),
        ([0], ["crane"], IMAGENET, "class 134, class 517"),
        ([0, 1], None, INSECTS, "numbers"),
        ([0, 7], None, {0: "", 1: ""}, "does not know: 7"),
        ([0, 3], ["a"], {0: "a"}, "does not know: 3"),
        ([-1], ["bee"], INSECTS, "no labels"),
    ],
)
def test_classes_without_a_counterpart_are_refused(
    labels: list[int], label_names: list[str] | None, class_names: dict[int, str], message: str
) -> None:
    with pytest.raises(CodaError, match=message):
        match_classes(labels, label_names, class_names)


def test_a_class_without_a_name_has_no_counterpart() -> None:
    assert find_class("", {0: "", 1: ""}) is None
    assert find_class("bee", {0: "", 1: " , "}) is None


def test_classes_of_one_side_alone_are_warned_of() -> None:
    assert class_warnings(["ant", "bee"], ["bee", "ant"]) == []
    assert class_warnings(["tabby"], ["n02123045"]) == []
    first, second = class_warnings(["ant", "bee"], ["bee", "cat"])
    assert "samples" in first and "ant" in first
    assert "reference" in second and "cat" in second
