"""Which class a word means."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from coda.pipeline.classes import ClassTable, find_classes, imagenet_classes
from coda.tokenizer import CodaError


def test_imagenet_ships_with_the_package():
    classes = imagenet_classes()
    assert [entry.index for entry in classes] == list(range(1000))
    assert (classes[207].wnid, classes[207].name) == ("n02099601", "golden retriever")
    assert [entry.wnid for entry in classes] == sorted(entry.wnid or "" for entry in classes)


@pytest.mark.parametrize(
    "word", [207, "207", "n02099601", "golden retriever", "Golden_Retriever", "  golden  retriever"], ids=str
)
def test_every_spelling_finds_the_class(word):
    assert find_classes(word) == [207]


def test_several_words_keep_their_order():
    assert find_classes(["goldfish", 207, "n01440764"]) == [1, 207, 0]
    assert find_classes(np.array([5, 3])) == find_classes(list(np.array([5, 3]))) == [5, 3]


def test_a_text_may_name_several_classes_with_commas_between():
    assert find_classes("golden retriever,tench, Tinca tinca , n01440764") == [207, 0, 0]
    with pytest.raises(CodaError, match='no class ""'):
        find_classes("207,,1")


def test_every_imagenet_class_is_found_by_its_id_and_by_all_its_synonyms_together():
    table = ClassTable(imagenet_classes())
    for entry in table.classes:
        words = [entry.wnid or "", str(entry.index), ", ".join(entry.names)]
        if len(table.classes[entry.index].names) == 1:
            words.pop()  # a few single names stand for two classes
        assert set(table.find_all(words)) == {entry.index}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("golden retreiver", '"golden retriever" \\(n02099601\\)'),
        ("retriever", "Labrador retriever"),
        ("n99999999", "no WordNet id"),
        ("007", 'no class "007"'),
        ("1e2", "no class"),
        ("", "no class"),
        (1000, "0 to 999"),
        ("-1", "0 to 999"),
        (True, "expected an index"),
        (2.5, "expected an index"),
        ("crane", "n02012849.*n03126707"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word, says):
    with pytest.raises(CodaError, match=says) as error:
        find_classes(word)
    assert "\n" not in str(error.value)


def test_a_class_the_model_never_saw_is_refused_with_those_that_it_knows():
    with pytest.raises(CodaError, match=r"never seen class 207.*; it knows 1 goldfish, 2 great white shark$"):
        find_classes("golden retriever", seen=[1, 2])
    with pytest.raises(CodaError, match=r"never seen class 207.*; it knows 100 classes, for example .*retriever"):
        find_classes("golden retriever", seen=range(208, 308))
    assert find_classes("crane", seen=[134, 1]) == [134], "only one of the two cranes was seen"


def test_class_names_of_the_data():
    table = ClassTable.of_model(4, ["cats", "dogs", "n02099601", "7"])
    assert table.find_all(["dogs", "golden retriever", "7", 3, "0"]) == [1, 2, 3, 3, 0]
    with pytest.raises(CodaError, match='"cats"'):
        table.find("cat")


def test_all_is_every_class_that_was_seen_or_the_class_of_that_name():
    assert find_classes("all", seen=[7, 1]) == [1, 7]
    assert find_classes(["0", "All"], seen=[0, 3]) == [0, 0, 3]
    assert ClassTable.of_model(3, ["none", "all", "some"]).find_all("all,0") == [1, 0]


def test_a_number_is_an_index_and_another_class_of_that_name_is_reported(capsys):
    table = ClassTable.of_model(4, ["0", "1", "10", "2"])  # folders in the order of their names
    assert table.find_all([2, "0", "1"]) == [2, 0, 1] and capsys.readouterr().err == ""
    assert table.find_all("2,3") == [2, 3]
    first, second = capsys.readouterr().err.splitlines()
    assert 'index, "10" (2); the class named "2" has index 3' in first and 'index, "2" (3)' in second
    assert table.find("10") == 2, "not an index"


def test_classes_without_names_are_found_by_index_only():
    for table in (ClassTable.of_model(200), ClassTable.of_model(1000), ClassTable.of_model(3, ["ant"])):
        assert table.find("1") == 1 and table[1].name == "1"
        with pytest.raises(CodaError, match="no class"):
            table.find("goldfish")
    with pytest.raises(CodaError, match="has no classes"):
        ClassTable.of_model(0).find(0)


def test_names_are_shown_escaped():
    with pytest.raises(CodaError) as error:
        ClassTable.of_model(1, ["cat\x1b[2J\n"]).find("ca\x1bt")
    assert str(error.value).isprintable()


def test_no_torch_is_loaded():
    code = "import sys, coda.pipeline as p; p.find_classes('goldfish'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
