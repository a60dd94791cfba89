"""`coda demo`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.settings import Range
from coda.tokenizer.settings import ImageOptions

from ..cli.arguments import Help, Without
from .flags import ModelOptions, Placement
from .model import open_pipeline


def demo(
    *,
    source: ModelOptions,
    port: Annotated[int, Range(1, 65535), Help("Port of the page.")] = 7860,
    runs: Annotated[Path, Help("Folder in which trainings and code caches are looked for.")] = Path("runs"),
    placement: Placement,
    options: Annotated[ImageOptions, Without("num_classes")],
) -> str:
    """Open a page in the browser: sample, reconstruct a photo, edit it, look inside.

    The page is for this machine alone (127.0.0.1) and needs no network. Ctrl-C ends it.

    Examples:
        coda demo
        coda demo --model runs/generator --port 8000
    """
    if find_spec("gradio") is None:
        raise CodaError("the page is made with Gradio, which is not installed: pip install 'coda[page]'")
    pipeline = open_pipeline(source, placement)
    pipeline.set_progress_bar_config(disable=True)
    from ..page.page import HOST, page_server

    with page_server(pipeline, source.model, runs, options.max_pixels, port) as (server, listening):
        print(f"Open http://{HOST}:{port} in a browser; Ctrl-C ends the page.", flush=True)
        server.run(sockets=[listening])
    return "The page has ended"
