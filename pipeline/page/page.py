"""The page as a whole: its four tabs, and the server that shows them to this machine alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from coda.tokenizer import CodaError

from ..coda_pipeline import CodaPipeline
from .edit_tab import add_edit_tab
from .inside_tab import add_inside_tab
from .reconstruct_tab import add_reconstruct_tab
from .sample_tab import add_sample_tab
from .uploads import MAX_BYTES

HOST = "127.0.0.1"  # no other machine can connect
_MOST_KEPT = 2**30  # bytes of uploads and images
_KEPT_SECONDS = 3600
_MOST_WAITING = 32  # requests in the queue
_SMALL = 200  # pixels; smaller images are enlarged with hard edges
_THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))


def build_page(pipeline: CodaPipeline, model: str, runs: Path, max_pixels: int) -> gr.Blocks:
    """The page of a pipeline; arguments as in `page_server`."""
    height, width = pipeline.tokenizer.size
    kept = (_KEPT_SECONDS, _KEPT_SECONDS)
    with gr.Blocks(title="coda", analytics_enabled=False, delete_cache=kept) as page:
        gr.Markdown(f"# coda: images as codes\nModel `{model}`: {width}×{height} pixels, {pipeline.tokenizer.layout}.")
        add_sample_tab(pipeline)
        add_reconstruct_tab(pipeline, max_pixels)
        add_edit_tab(pipeline, max_pixels)
        add_inside_tab(pipeline, runs, max_pixels)
    return page.queue(max_size=_MOST_WAITING)


@contextmanager
def page_server(
    pipeline: CodaPipeline, model: str, runs: Path, max_pixels: int, port: int
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """A server of the page, and the socket that it is to run on: `server.run(sockets=[socket])`.

    Uploads and images lie in a folder of their own, which vanishes with the context. No other file is served.

    Args:
        pipeline: The pipeline.
        model: Its name, for the heading.
        runs: Folder in which trainings and code caches are looked for.
        max_pixels: Larger uploads are refused, see `decode_image`.
        port: Port of 127.0.0.1; 0 for any.

    Raises:
        CodaError: If the port is in use.
    """
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise CodaError(f"port {port} cannot be used ({os.strerror(error.errno or 0)}): give another --port") from error
    with listening, TemporaryDirectory(prefix="coda-page-") as folder:
        places = dict.fromkeys(
            ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"), folder
        )  # all that Gradio serves files from
        os.environ |= {**places, "GRADIO_ANALYTICS_ENABLED": "False"}
        page = build_page(pipeline, model, runs, max_pixels)
        app = FastAPI(openapi_url=None)
        app.add_middleware(FullFolder, folder=Path(folder))
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no name of a foreign site
        gr.mount_gradio_app(
            app, page, "/", server_name=HOST, footer_links=[], run_history=False, enable_monitoring=False,
            show_error=False, max_file_size=MAX_BYTES, ssr_mode=False, pwa=False, mcp_server=False, theme=_THEME,
            css=_css(min(pipeline.tokenizer.size)),
        )  # fmt: skip
        yield uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)), listening


class FullFolder:
    """Refuses uploads while `folder` holds too much; what is older than an hour is deleted from it."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app, self.folder = app, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_upload = scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload")
        if is_upload and sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) > _MOST_KEPT:
            refusal = PlainTextResponse("The page holds too many images: try again in an hour.", 507)
            return await refusal(scope, receive, send)
        return await self.app(scope, receive, send)


def _css(side: int) -> str:
    rendering = "pixelated" if side < _SMALL else "auto"
    return f".pixels img {{ width: 100%; height: 100%; object-fit: contain; image-rendering: {rendering}; }}"
