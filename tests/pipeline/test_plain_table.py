from __future__ import annotations

from coda.pipeline.cli.plain_table import plain_table


def test_words_stand_left_and_numbers_right() -> None:
    assert plain_table([("layout", "1 2 4"), ("", None), ("K", 32)]) == ["layout  1 2 4", "", "K       32"]
    assert plain_table([("level", "usage"), (0, 1.5)], numbers=True) == ["level  usage", "    0    1.5"]


def test_no_rows_are_no_lines() -> None:
    assert plain_table([]) == []
