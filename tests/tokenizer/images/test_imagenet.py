from __future__ import annotations

from coda.tokenizer.images.imagenet import imagenet_classes, index_of_wnid


def test_the_thousand_classes_are_in_the_order_of_their_ids() -> None:
    classes = imagenet_classes()
    assert len(classes) == len({entry.wnid for entry in classes}) == 1000
    assert [entry.wnid for entry in classes] == sorted(entry.wnid for entry in classes)
    assert classes[0] == ("n01440764", ("tench", "Tinca tinca"))
    assert classes[207].names[0] == "golden retriever"


def test_an_id_has_its_index_and_others_have_none() -> None:
    assert index_of_wnid("n02099601") == 207
    assert [index_of_wnid(entry.wnid) for entry in imagenet_classes()] == list(range(1000))
    assert index_of_wnid("n00000001") is None and index_of_wnid("cat") is None
