"""`bark_accel.notebook.play` in a real browser without a window: its scripts run as a notebook's page runs them."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from support import notebook_display
from support.waiting import until

from bark_accel.notebook import play

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not DRIVER or not BROWSER, reason="chromium and chromedriver are missing: apt install chromium chromium-driver"
)
RATE = 16_000
# What goes to the loudspeaker goes to `ear` as well.
EAR = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target === this.context.destination) {
    globalThis.ear ??= this.context.createAnalyser();
    connect.call(this, globalThis.ear);
  }
  return connect.call(this, target, ...rest);
};
"""
# As a notebook's page does with the HTML of an output: scripts that are set with it do not run by themselves.
SHOW = """
const output = (globalThis.output ??= document.body.appendChild(document.createElement("div")));
output.innerHTML = arguments[0];
for (const old of output.querySelectorAll("script")) {
  const script = document.createElement("script");
  script.textContent = old.textContent;
  old.replaceWith(script);
}
"""
LOUDEST = """
const samples = new Float32Array(2048);
globalThis.ear?.getFloatTimeDomainData(samples);
return Math.max(...samples.map(Math.abs));
"""
STATE = """
const [player] = Object.values(globalThis.barkAccelPlayers ?? {});
return player ? [player.context.state, player.end - player.context.currentTime] : null;
"""


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    for flag in [*flags, "--autoplay-policy=no-user-gesture-required"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get("about:blank")
    driver.execute_script(EAR)
    yield driver
    driver.quit()


@pytest.fixture
def shown(monkeypatch, browser):
    """IPython's display: HTML goes to the browser at once; all that was shown."""
    shown: list = []

    class Place:
        def update(self, what):
            shown.append(what)
            if isinstance(what, str):
                browser.execute_script(SHOW, what)

    place = Place()
    notebook_display.install(monkeypatch, lambda what, *, display_id: place)
    return shown


def tone(seconds: float) -> torch.Tensor:
    return 0.5 * torch.sin(torch.arange(round(seconds * RATE)) * 2 * torch.pi * 440 / RATE)


def heard(browser) -> float:
    """The loudest sample, once there is more than the first few of a sound."""
    loudest: list[float] = []
    until(lambda: loudest.append(browser.execute_script(LOUDEST)) or loudest[-1] > 0.4, every_s=0.02)
    return loudest[-1]


def test_it_sounds_before_the_last_chunk_is_there(browser, shown):
    def chunks():
        yield tone(60.0)[None]
        assert 0.4 < heard(browser) < 0.52, "the first chunk, while the second is generated"
        state, left_s = browser.execute_script(STATE)
        assert state == "running" and 0 < left_s <= 60.0
        yield tone(60.0)[None]
        assert browser.execute_script(STATE)[1] > left_s, "the second one follows the first"

    audio = play(chunks(), RATE)
    assert len(audio) == 120 * RATE and shown[-1].rate == RATE
    assert heard(browser) > 0, "it goes on where the cell has ended"


def test_a_stopped_cell_is_silent(browser, shown):
    def chunks():
        yield tone(30.0)
        assert heard(browser) > 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(chunks(), RATE)
    assert browser.execute_script(STATE) is None
    until(lambda: browser.execute_script("return globalThis.ear.context.state") == "closed", every_s=0.02)
    assert re.search("close", shown[-1])
