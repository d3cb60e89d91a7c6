"""The web page, in a real browser without a window."""

from __future__ import annotations

import io
import shutil
import wave

import av
import pytest
from support.servers import SPEECH
from support.waiting import until

from bark_accel import small_bark_path

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
By, Select = (
    pytest.importorskip("selenium.webdriver.common.by").By,
    pytest.importorskip("selenium.webdriver.support.ui").Select,
)
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not DRIVER or not BROWSER, reason="chromium and chromedriver are missing: apt install chromium chromium-driver"
)
LONG = "Hello, my dog is cute. Good morning, my cat is big. " * 40
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=900,1000"),
)
# Is any pixel of the waveform there?
DRAWN = """
const wave = document.getElementById("wave");
return wave.getContext("2d").getImageData(0, 0, wave.width, wave.height).data.some((value) => value > 0);
"""


class Page:
    """What a person does with the page."""

    def __init__(self, driver, folder):
        self.driver, self.folder = driver, folder

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    @property
    def state(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").get_attribute("data-state")

    def open(self, server):
        self.driver.get(server.url)
        until(lambda: len(Select(self["voice"]).options) > 1)

    def type(self, field: str, text: str) -> None:
        self[field].clear()
        self[field].send_keys(text)

    def speak(self, text: str) -> None:
        self.type("text", text)
        self["speak"].click()

    def number(self, name: str) -> float:
        return float(self[name].text.split()[0].replace("–", "-1"))

    def saved(self, form: str) -> bytes:
        """Download in a format; the file."""
        Select(self["format"]).select_by_visible_text(form)
        self["download"].click()
        until(lambda: list(self.folder.glob(f"*.{form}")))
        (path,) = self.folder.glob(f"*.{form}")
        return path.read_bytes()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    downloads = folder / "downloads"
    downloads.mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Page(driver, downloads)
    driver.quit()


@pytest.fixture
def page(browser, server):
    browser.open(server)
    for path in browser.folder.iterdir():
        path.unlink()
    yield browser
    severe = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if "status of 4" not in message]


def test_speech_is_heard_and_saved(page, server):
    page.type("seed", "7")
    page.speak("Hello, my dog is cute.")
    until(lambda: page.state == "done")
    assert page.number("first") > 0 and page.number("factor") > 0
    length = float(page["heard"].text.split()[2])
    until(lambda: page.number("heard") == length > 1)
    asked = {"input": "Hello, my dog is cute.", "voice": Select(page["voice"]).first_selected_option.text, "seed": 7}
    expected = server.post(SPEECH, json={**asked, "response_format": "pcm"}).content
    assert page.saved("pcm") == expected
    with wave.open(io.BytesIO(page.saved("wav"))) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (24_000, 1)
        assert sound.readframes(sound.getnframes()) == expected
    with av.open(io.BytesIO(page.saved("mp3"))) as sound:
        assert sound.streams.audio[0].codec.name.startswith("mp3")


def test_chunks_are_heard_before_the_end_and_stop_ends_it(page, server):
    page.speak(LONG)
    until(lambda: page.number("heard") > 0)
    until(lambda: page.state == "speaking" and server.engine.requests)
    until(lambda: page.driver.execute_script(DRAWN))
    page["stop"].click()
    until(lambda: page.state == "stopped")
    until(lambda: not server.engine.requests)
    assert not page["stop"].is_enabled() and not page["download"].is_enabled()


@pytest.mark.parametrize(
    ("text", "seed", "message"),
    [
        ("Hello, zebra", "", "The small Bark does not know: zebra."),
        ("  ", "", "Type a text first."),
        ("...", "", "expected words"),
        ("Hello", "-4", "Seed: expected a whole number"),
    ],
)
def test_bad_input_is_refused_with_a_reason(page, text, seed, message):
    page.type("seed", seed)
    page.speak(text)
    until(lambda: message in page["error"].text)
    assert page["text"].get_attribute("aria-invalid") == "true" and page.state != "speaking"
    page.type("seed", "")
    page.speak("Hello")
    until(lambda: page.state == "done")
    assert page["error"].text == "" and page["text"].get_attribute("aria-invalid") == "false"


def test_a_voice_is_uploaded_used_and_deleted(page, tmp_path):
    good, bad = small_bark_path() / "speaker_embeddings" / "rms.npz", tmp_path / "bad.npz"
    bad.write_bytes(b"no zip")
    page.driver.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page["send"].click()
    until(lambda: "Choose a file" in page["upload-error"].text)
    page["file"].send_keys(str(bad))
    page.type("name", "mine")
    page["send"].click()
    until(lambda: "agreed" in page["upload-error"].text)
    page["consent"].click()
    page["send"].click()
    until(lambda: "File: " in page["upload-error"].text)
    page["file"].send_keys(str(good))
    page["send"].click()
    until(lambda: "mine is there" in page["status"].text or page["upload-error"].text)
    assert page["upload-error"].text == "" and page["voice"].get_attribute("value") == "mine"
    page["forget"].click()
    until(lambda: "is deleted" in page["status"].text)
    assert "mine" not in page["voice"].text


def test_keyboard_and_screen_reader(page):
    """Every control has a name; the text's own keys speak; errors and progress are announced."""
    from selenium.webdriver.common.keys import Keys

    for control in page.driver.find_elements(By.CSS_SELECTOR, "button, input, select, textarea, canvas"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("id")
    assert page["error"].aria_role == "alert" and page["status"].aria_role == "status"
    page.type("text", "Hello")
    page["text"].send_keys(Keys.CONTROL, Keys.ENTER)
    until(lambda: page.state == "done" and page["status"].text.startswith("Done"))


def test_nothing_comes_from_elsewhere(page):
    """The page works offline: all that it loads is this server's."""
    names = page.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert names and all(name.startswith(page.driver.current_url) for name in names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page, scheme):
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    ground = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) > 128) == (scheme == "light")
