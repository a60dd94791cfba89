from __future__ import annotations

import pytest

from coda.tokenizer.foundation.errors import shown
from coda.tokenizer.foundation.progress import progress

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def lines_of(capsys: pytest.CaptureFixture[str], seconds_per_image: float, images: int = 10) -> list[str]:
    now = 0.0
    with progress("Tokenizing", 20, "images", completed=20 - images, clock=lambda: now) as bar:
        for i in range(images):
            now += seconds_per_image
            bar.advance(skipped=i)
    return capsys.readouterr().err.splitlines()


def test_a_log_file_gets_a_line_a_minute_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(capsys, 25) == [
        "Tokenizing 13/20 images, 25.0 s/image, 0:02:55 left, skipped 2",
        "Tokenizing 16/20 images, 25.0 s/image, 0:01:40 left, skipped 5",
        "Tokenizing 19/20 images, 25.0 s/image, 0:00:25 left, skipped 8",
        "Tokenizing 20/20 images, 25.0 s/image, 0:00:00 left, skipped 9",
    ]
    assert lines_of(capsys, 1) == []  # done within the first minute


@pytest.mark.parametrize(
    ("variables", "lines"), [(LAUNCHED, 0), ({"RANK": "1"}, 4), ({"RANK": "1", "WORLD_SIZE": "2"}, 4)]
)
def test_only_the_first_of_the_processes_of_a_launcher_speaks(
    variables: dict[str, str], lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert len(lines_of(capsys, 25)) == lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ö 猫.jpg", "ö 猫.jpg"), ("a\x1b[2J\n.jpg", r"a\x1b[2J\n.jpg"), ("caf\udce9.png", r"caf\udce9.png"), (7, "7")],
)
def test_names_are_shown_without_control_characters(name: object, expected: str) -> None:
    assert shown(name) == expected
