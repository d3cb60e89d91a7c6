"""`bark_accel.notebook` without a browser: what is displayed, and its script run by node where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from types import ModuleType

import pytest
import torch
from support import notebook_display
from support.bark_models import SMALL, texts
from support.parity import accelerated_copy

from bark_accel import stream
from bark_accel.notebook import play

RATE = 24_000
MISSING = "IPython is not installed: pip install ipython"
# Of what a browser has: a clock that moves on, a record of what is to sound when, and timers of [at second, what].
BROWSER = """
const scheduled = [], timers = [];
globalThis.setTimeout = (what, ms) => timers.push([clock + ms / 1000, what]);
let clock = 0.5, closed = 0;
globalThis.AudioContext = class {
  get currentTime() { return clock; }
  createBuffer(channels, length, rate) {
    const data = new Float32Array(length);
    return {duration: length / rate, getChannelData: () => data};
  }
  createBufferSource() {
    return {connect() {}, start(at) { scheduled.push([at, [...this.buffer.getChannelData(0)]]); }};
  }
  close() { closed += 1; }
};
"""


class Place:
    """A place in the output of a cell, and all that it has shown."""

    def __init__(self, first):
        self.shown = [first]

    def update(self, shown) -> None:
        self.shown.append(shown)

    @property
    def scripts(self) -> list[str]:
        return re.findall(r"<script>(.*?)</script>", "".join(s for s in self.shown if isinstance(s, str)), re.DOTALL)


@pytest.fixture
def places(monkeypatch):
    """What `display` was given, with HTML as a str."""
    places: list[Place] = []

    def display(shown, *, display_id: bool) -> Place:
        assert display_id
        places.append(Place(shown))
        return places[-1]

    notebook_display.install(monkeypatch, display)
    return places


def run_by_node(scripts: list[str], between: str = "", until: float = 0) -> tuple[list, int]:
    """What the scripts schedule, and how many contexts they have closed at that second."""
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        pytest.skip("there is no node")
    wait = f"timers.filter(([at]) => at <= {until}).forEach(([at, what]) => what());"
    program = f"{BROWSER}{between.join(scripts)}\n{wait}console.log(JSON.stringify([scheduled, closed]));"
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, check=True)
    scheduled, closed = json.loads(done.stdout)
    return scheduled, closed


def test_chunks_follow_each_other(places):
    chunks = [torch.rand(1, 2400) - 0.5, torch.rand(4800) - 0.5, torch.zeros(1, 0), torch.tensor([1.5, -1.5])]
    audio = play(iter(chunks), RATE)
    torch.testing.assert_close(audio, torch.cat([c.flatten() for c in chunks]))
    (place,) = places
    player = place.shown[-1]
    assert player.rate == RATE and len(player.data) == len(audio)
    assert not player.normalize, "as loud as the chunks were"
    scheduled, closed = run_by_node(place.scripts)
    assert [round(at, 6) for at, _ in scheduled] == [0.5, 0.6, 0.8] and closed == 0
    heard = torch.tensor([sample for _, samples in scheduled for sample in samples])
    torch.testing.assert_close(heard, audio.clamp(-1, 1), rtol=0, atol=1e-4)


def test_sound_that_comes_too_late_starts_at_once(places):
    play([torch.zeros(2400), torch.zeros(2400)], RATE)
    scheduled, _ = run_by_node(places[0].scripts, "clock = 9;")
    assert [at for at, _ in scheduled] == [0.5, 9]


def test_the_context_is_closed_when_all_has_sounded(places):
    """The last chunk sounds until 0.7 s, and some of it is still on its way to the loudspeaker."""
    play([torch.zeros(2400), torch.zeros(2400)], RATE)
    assert [run_by_node(places[0].scripts, until=second)[1] for second in (0.75, 2.0)] == [0, 1]
    play([torch.zeros(2400)], RATE)
    assert run_by_node([*places[0].scripts, *places[1].scripts], until=2.0)[1] == 2, "each its own"
    play([], RATE)
    assert run_by_node(places[2].scripts, until=2.0) == ([], 0), "nothing was said"


def test_two_players_do_not_wait_for_each_other(places):
    for _ in range(2):
        play([torch.zeros(2400)], RATE)
    scheduled, _ = run_by_node([*places[0].scripts, *places[1].scripts])
    assert [at for at, _ in scheduled] == [0.5, 0.5]


def test_each_chunk_is_shown_before_the_next_is_asked_for(places):
    def chunks():
        for heard in range(3):
            assert not places or len(places[0].scripts) == heard
            yield torch.zeros(240)

    play(chunks(), RATE)
    assert len(places[0].scripts) == 3 + 1, "the last one ends it"


def test_a_cell_that_is_stopped_stops_the_sound_and_the_generation(places):
    left = []

    def chunks():
        try:
            yield torch.zeros(240)
            raise KeyboardInterrupt
        finally:
            left.append(True)

    with pytest.raises(KeyboardInterrupt):
        play(chunks(), RATE)
    assert left and run_by_node(places[0].scripts)[1] == 1


def test_rows_of_a_batch_are_refused_and_not_generated(places):
    left = []

    def chunks():
        try:
            yield torch.zeros(2, 5)
        finally:
            left.append(True)

    given = chunks()
    with pytest.raises(ValueError, match=r"expected one waveform, \[S\] or \[1, S\], got \[2, 5\]"):
        play(given)
    assert left, "the stream is closed, though somebody still has it"


def test_a_stream_is_played_whole(places, small_model):
    fast = accelerated_copy(small_model)
    torch.manual_seed(0)
    expected = torch.cat([*stream(fast, **texts(SMALL, [9]))], 1)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(play(stream(fast, **texts(SMALL, [9])), RATE), expected, rtol=0, atol=0)


@pytest.fixture
def ipython(tmp_path, monkeypatch):
    """IPython itself, with a shell of its own; what is published goes to the list that is given."""
    shells = pytest.importorskip(
        "IPython.core.interactiveshell", reason="IPython is not installed: pip install ipython"
    )
    config = pytest.importorskip("traitlets.config").Config({"HistoryManager": {"enabled": False}})
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = shells.InteractiveShell.instance(config=config, user_module=ModuleType("cells"))
    published: list[dict] = []
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, **more: published.append({**data, **more}))
    yield published
    shells.InteractiveShell.clear_instance()


def test_ipythons_own_display(ipython):
    """One place, which ends as the player of all."""
    play([torch.zeros(1, 240), torch.rand(240) - 0.5], RATE)
    assert len({shown["transient"]["display_id"] for shown in ipython}) == 1
    assert [shown.get("update", False) for shown in ipython] == [False, *[True] * 4]
    pages = [shown["text/html"] for shown in ipython]
    assert ["<script>" in page for page in pages] == [False, True, True, True, False] and "<audio" in pages[-1]


def test_a_script_is_told_that_it_is_no_notebook(capsys):
    pytest.importorskip("IPython", reason=MISSING)
    left = []

    def chunks():
        try:
            yield torch.zeros(240)
        finally:
            left.append(True)

    given = chunks()
    with pytest.raises(RuntimeError, match=r"^play: expected the cell of a notebook, got a process without"):
        play(given)
    assert next(given, None) is None and not left, "closed before it began"
