"""The page without a browser: what it serves, what it refuses, and what it says."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import pytest

from coda.pipeline.cli.cli import main
from coda.tokenizer.images.source import MAX_PIXELS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Gradio, which asks to see its own
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def client(pipeline, tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs Gradio (the extra `page`)")
    from starlette.testclient import TestClient

    from coda.pipeline.page.page import page_server

    runs = tmp_path_factory.mktemp("runs")
    (runs / "secret.txt").write_text("for nobody")
    serving = page_server(pipeline, "tiny", runs, MAX_PIXELS, port=0)
    with serving as (server, _), TestClient(server.config.app, base_url="http://127.0.0.1") as made:
        made.runs = runs
        yield made


def called(client, name: str, *data: object) -> str:
    """What one function of the page answers, as its stream of events."""
    event = client.post(f"/gradio_api/call/{name}", json={"data": data})
    if event.status_code != 200:
        return event.text
    return client.get(f"/gradio_api/call/{name}/{event.json()['event_id']}").text


def uploaded(client, name: str, content: bytes) -> dict:
    (path,) = client.post("/gradio_api/upload", files={"files": (name, io.BytesIO(content))}).json()
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def test_no_file_of_the_machine_is_served(client):
    assert client.get("/").status_code == 200
    for path in ("/etc/passwd", ROOT / "pyproject.toml", client.runs / "secret.txt", "../../etc/passwd"):
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"):
            answer = client.get(f"{route}{path}")
            assert answer.status_code in (403, 404, 405), f"{route}{path}"
            assert "root:x:" not in answer.text and "for nobody" not in answer.text


def test_an_upload_that_names_a_file_of_the_machine_is_refused(client):
    there = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    answer = called(client, "reconstruct", there, 4)
    assert "event: error" in answer and "PSNR" not in answer


def test_bad_uploads_get_a_line(client, capfd):
    bad = uploaded(client, "photo.png", b"words")
    answer = called(client, "reconstruct", bad, 4)
    assert "photo.png is not an image of a known format" in answer
    assert "Traceback" not in answer + capfd.readouterr().err


def test_uploads_that_are_too_large_are_refused(client):
    from coda.pipeline.page.uploads import MAX_BYTES

    answer = client.post("/gradio_api/upload", files={"files": ("a.png", io.BytesIO(bytes(MAX_BYTES + 1)))})
    assert answer.status_code == 413


def test_uploads_are_refused_while_the_page_holds_too_much(client):
    large = Path(os.environ["GRADIO_TEMP_DIR"]) / "large"
    with large.open("wb") as file:
        file.truncate(2**30 + 1)  # takes no space
    statuses = [client.post("/gradio_api/upload", files={"files": ("a.png", io.BytesIO(b"1"))}).status_code]
    large.unlink()
    statuses += [client.post("/gradio_api/upload", files={"files": ("a.png", io.BytesIO(b"1"))}).status_code]
    assert statuses == [507, 200]


def test_other_names_of_this_machine_are_refused(client):
    assert client.get("/", headers={"Host": "attacker.example"}).status_code == 400


def test_without_gradio_a_line_says_what_to_type(saved, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", str(saved / "pipeline")]) == 1
    assert capsys.readouterr().err == (
        "coda demo: the page is made with Gradio, which is not installed: pip install 'coda[page]'\n"
    )


def test_a_port_in_use_is_a_line(saved, capsys):
    pytest.importorskip("gradio", reason="the page needs Gradio (the extra `page`)")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--model", str(saved / "pipeline"), "--port", str(port)]) == 1
    assert f"port {port} cannot be used (Address already in use): give another --port" in capsys.readouterr().err
