"""The page in headless Chromium, as a person uses it: samples a class, reconstructs a photo, fills a region."""

from __future__ import annotations

import io
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coda.tokenizer.images.source import MAX_PIXELS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Gradio, which asks to see its own
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1280,1100"
)
PATIENCE = 60  # seconds that a busy machine may take for one answer


@pytest.fixture(scope="module")
def address(pipeline, tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the page needs Gradio (the extra `page`)")
    from coda.pipeline.page.page import page_server

    with page_server(pipeline, "tiny", tmp_path_factory.mktemp("runs"), MAX_PIXELS, port=0) as (server, listening):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="Chromium is driven with selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and its driver are not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('user')}"):
        options.add_argument(option)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # no network
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    made.get(address)
    yield made
    made.quit()


class Person:
    """Looks at one tab and uses it."""

    def __init__(self, browser: Any, tab: str) -> None:
        self.browser = browser
        self.click(lambda: next(b for b in self.shown("button[role=tab]") if b.text.strip() == tab))

    def until(self, found: Any) -> Any:
        """Wait until `found` gives something."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = [WebDriverException, IndexError, StopIteration]  # not there yet, or covered
        return WebDriverWait(self.browser, PATIENCE, 0.1, ignored).until(lambda _: found())

    def shown(self, selector: str) -> list[Any]:
        return [e for e in self.browser.find_elements("css selector", selector) if e.is_displayed()]

    def click(self, found: Any) -> None:
        """Click on something as soon as it is there and nothing lies over it."""
        self.until(lambda: found().click() or True)

    def press_button(self) -> None:
        """Press the one button of the tab that stands out."""
        self.click(lambda: self.shown("button.primary")[0])

    def wait_for(self, *texts: str) -> str:
        """The first of the texts that is to be read on the page."""
        return self.until(
            lambda: next((text for text in texts if text in self.browser.find_element("tag name", "body").text), None)
        )

    def upload(self, path: Any) -> None:
        selector = "input[type=file]"
        panel = self.until(lambda: self.shown("[role=tabpanel]")[0])
        self.until(lambda: panel.find_element("css selector", selector)).send_keys(str(path))

    def images(self, least: int) -> list[Image.Image]:
        """The images of the tab, once there are at least so many."""
        sources = self.until(lambda: len(found := self.sources()) >= least and found)
        return [Image.open(io.BytesIO(urllib.request.urlopen(source).read())) for source in sources]

    def sources(self) -> list[str]:
        found = [element.get_attribute("src") for element in self.shown("[role=tabpanel] img")]
        return [source for source in found if source and "/file=" in source]

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture
def photo(tmp_path):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    coarse.resize((60, 40), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def test_a_class_is_sampled(browser, pipeline):
    person = Person(browser, "Sample")
    person.press_button()
    person.wait_for("Finished, with seed 0")
    images = person.images(5)  # the image, and it after each level
    assert {image.size for image in images} == {(16, 16)}
    config = pipeline.scheduler.config
    expected = pipeline(0, generator=0, num_inference_steps=config["num_inference_steps"]).images[0]
    assert images[0].convert("RGB") == expected
    assert not person.complaints()


def test_a_photo_is_reconstructed_and_a_bad_one_gets_a_message(browser, photo, tmp_path):
    person = Person(browser, "Reconstruct")
    (tmp_path / "bad.png").write_text("words")
    person.upload(tmp_path / "bad.png")
    person.wait_for("bad.png is not an image of a known format")
    person.click(lambda: person.shown("button[aria-label=Clear]")[0])
    person.upload(photo)
    person.wait_for("4 of 4 levels. PSNR")
    original, reconstruction, difference, codes = person.images(4)
    assert original.size == reconstruction.size == difference.size == (16, 16)
    assert np.asarray(original).std() > 5 and np.asarray(reconstruction).std() > 0
    assert codes.width > 400
    assert not person.complaints()


def test_one_looks_inside(browser):
    person = Person(browser, "Look inside")
    person.press_button()
    codes, confidence = person.images(2)
    assert codes.width == confidence.width > 400
    person.wait_for("perplexity")
    assert not person.complaints()


@pytest.mark.parametrize("kind", ["continue beyond the borders", "vary"])
def test_an_image_is_edited_as_a_whole(browser, photo, kind):
    browser.refresh()  # without what an earlier test left in the tab
    person = Person(browser, "Edit")
    person.upload(photo)
    person.wait_for("Brush over what is to change, then")
    person.click(lambda: next(e for e in person.shown("label") if e.text.strip() == kind))
    person.wait_for("Size of the photo" if kind.startswith("continue") else "Levels kept")
    person.press_button()
    person.wait_for("codes were sampled again")
    original, first, second = (np.asarray(image.convert("RGB"), int) for image in person.images(3))
    assert original.shape == first.shape == second.shape == (16, 16, 3)
    assert np.abs(first - second).max() > 0  # two seeds
    assert not person.complaints()


def test_a_brushed_region_is_filled(browser, photo):  # the last: its canvas keeps a processor busy
    from selenium.webdriver import ActionChains

    browser.refresh()
    person = Person(browser, "Edit")
    person.upload(photo)
    person.wait_for("Brush over what is to change, then")

    def brush_and_press() -> bool:  # what is brushed before the photo is drawn is lost
        canvas = person.shown("canvas")[0]
        chain = ActionChains(browser).move_to_element_with_offset(canvas, -60, -30).click_and_hold()
        chain.move_by_offset(60, 30).move_by_offset(60, 30).release().perform()
        person.press_button()
        return person.wait_for("codes were sampled again", "brush over the part") == "codes were sampled again"

    person.until(brush_and_press)
    original, *variants = person.images(3)
    assert {image.size for image in (original, *variants)} == {(16, 16)}
    changed = (
        np.abs(np.asarray(original.convert("RGB"), int) - np.asarray(variants[0].convert("RGB"), int)).max(axis=2) > 0
    )
    assert changed[4:12, 4:12].any() and not changed[:2].any() and not changed[-2:].any()
    assert not person.complaints()
