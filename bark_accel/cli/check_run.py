"""Runs the parts of `check` within its time: the most important first, and names those there was no time for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bark_accel.bench.measure import run_once

from .checked import Checked
from .console import user_errors
from .progress import progress_bars

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from torch import Tensor
    from transformers import BarkModel

    from bark_accel.bench.approximations import Utterance
    from bark_accel.bench.check import Request
    from bark_accel.bench.forced import Distance, Fed
    from bark_accel.bench.measure import Run
    from bark_accel.bench.models import LoadedBark
    from bark_accel.bench.speaker import SpeakerEncoder
    from bark_accel.bench.voices import Held

# Each way to speak once, whatever the time.
AT_LEAST = 4
# Of the time, until all texts are said once: without voices to rank, and with.
TEXTS_SHARE, TEXTS_SHARE_WITH_VOICES = 0.75, 0.5
# Ways to score otherwise than by smaller weights.
INT8_CACHE, LONG_WINDOWS = "int8 cache", "long coarse windows"
# Utterances are cut to this length, and no further, so that all texts fit.
SHORTEST_S = 0.4
# Utterances whose fine codes are made again in each approximate way: another one begins before so many seconds.
HEARD, HEARD_S = 3, 5.0
# Longest utterance in long coarse windows: of suno's models, five of stock's.
LONG_WINDOWS_S = 2.0
# Longest utterance that a voice is judged by: of less than 1.6 s, similarities say little.
VOICE_S = 4.0


class Budget:
    """Time from now on, in minutes."""

    def __init__(self, minutes: float):
        self._start, self._seconds = time.monotonic(), 60 * minutes

    def left(self, share: float = 1.0) -> float:
        """Seconds until that share of the time has passed, negative afterwards."""
        return self._start + share * self._seconds - time.monotonic()

    @property
    def is_up(self) -> bool:
        return self.left() <= 0


class CheckRun:
    """One run of `check`; `checked` has what was found so far, whenever it is asked.

    Parameters
    ----------
    loaded : LoadedBark
        Stock, in float32.
    accelerated : BarkModel
        On the same weights.
    tokens : int
        Semantic tokens of an utterance, at most.
    voices : bool
        Rank the checkpoint's voices; `speakers` is needed for it.
    """

    def __init__(
        self,
        loaded: LoadedBark,
        accelerated: BarkModel,
        *,
        tokens: int,
        seed: int,
        budget: Budget,
        speakers: SpeakerEncoder | None,
        voices: bool,
    ):
        self._loaded, self._accelerated = loaded, accelerated
        self._seed, self._budget = seed, budget
        self._speakers, self._voices = speakers, voices
        self.checked = Checked(tokens)

    def measure(self) -> None:
        """Do one part after the other, until all are done or a signal or an error ends it."""
        from bark_accel.bench.check import TEXTS, requests

        wanted = requests(self._loaded, self._seed)
        texts, again = wanted[: max(len(TEXTS), AT_LEAST)], wanted[max(len(TEXTS), AT_LEAST) :]
        with progress_bars() as bars:
            first, fed = self._warm_up(texts, bars)
            parts = {
                "texts": partial(self._compare, "texts", texts, self._share, bars, at_least=AT_LEAST),
                "first sound": partial(self._first_sound, first),
                "kernels": partial(self._kernels, first),
                "scores": partial(self._distances, fed, bars),
                "sounds": partial(self._sounds, bars),
                "voices": partial(self._rank, bars),
                "texts in other ways": partial(self._compare, "texts in other ways", again, 1.0, bars, at_least=0),
            }
            if self._loaded.model.device.type != "cuda":
                del parts["kernels"]
            if not self._voices:
                del parts["voices"]
            self._do(parts)

    def _do(self, parts: Mapping[str, Callable[[], None]]) -> None:
        undone = list(parts)
        try:
            for part in parts.values():
                part()
                del undone[0]
        except BaseException:
            self.checked.left_out += undone
            raise

    @property
    def _tokens(self) -> int:
        return self.checked.most_tokens

    @property
    def _share(self) -> float:
        return TEXTS_SHARE_WITH_VOICES if self._voices else TEXTS_SHARE

    def _warm_up(self, texts: list[Request], bars: Progress) -> tuple[dict[str, Any], dict[str, Fed]]:
        """Speak once with both; shorten utterances if otherwise not all texts fit.

        Returns
        -------
        tuple
            Arguments of `generate` for a sampled utterance without a voice, and what stock's transformers were fed.
        """
        from bark_accel.bench.check import inputs_of
        from bark_accel.bench.forced import recorded

        request = next((r for r in texts if r.do_sample and r.voice is None), texts[0])
        inputs = {**inputs_of(self._loaded, request), "semantic_max_new_tokens": self._tokens}
        task = bars.add_task("warming up", total=2)
        runs: list[Run] = []

        def speak(model: BarkModel) -> None:
            runs.append(run_once(model, dict(inputs), self._seed))
            bars.advance(task)

        fed = recorded(self._loaded.model, speak)
        speak(self._accelerated)
        fitting = fitting_tokens(runs, self._budget.left(self._share) / len(texts))
        self.checked.most_tokens = min(self._tokens, max(fitting, _tokens_of(self._loaded.model, SHORTEST_S)))
        return {**inputs, "semantic_max_new_tokens": self._tokens}, fed

    def _compare(self, what: str, wanted: list[Request], share: float, bars: Progress, at_least: int) -> None:
        from bark_accel.bench.check import compare

        task = bars.add_task(what, total=len(wanted))
        before = len(self.checked.compared)
        for one in compare(
            self._loaded,
            self._accelerated,
            wanted,
            seconds=self._budget.left(share),
            at_least=min(at_least, len(wanted)),
            tokens=self._tokens,
        ):
            self.checked.compared.append(one)
            bars.advance(task)
        left_out = len(wanted) - (len(self.checked.compared) - before)
        if left_out:
            self.checked.left_out.append(f"{left_out} of {len(wanted)} {what}")

    def _first_sound(self, inputs: dict[str, Any]) -> None:
        from bark_accel.bench.check import first_sound

        self.checked.first_sound_s = first_sound(self._accelerated, dict(inputs), self._seed)

    def _in_time(self, what: str, task: TaskID, bars: Progress) -> bool:
        """Tell whether there is time for one more; if not, it is named."""
        if self._budget.is_up:
            self.checked.left_out.append(what)
            return False
        bars.advance(task)
        return True

    def _distances(self, fed: dict[str, Fed], bars: Progress) -> None:
        """Compare scores with stock's, for stock's own tokens, in each way to score otherwise."""
        from bark_accel.bench.check import english_voices
        from bark_accel.bench.forced import distances
        from bark_accel.transformer.precision import WEIGHTS

        stock = self._loaded.model
        ways = {precision: partial(distances, stock, fed, precision) for precision in WEIGHTS}
        if stock.device.type == "cpu":
            ways[INT8_CACHE] = partial(distances, stock, fed, "same", int8_cache=True)
        if voices := english_voices(self._loaded):
            ways[LONG_WINDOWS] = partial(self._long_windows, voices[0])
        task = bars.add_task("other scores", total=len(ways))
        for way, score in ways.items():
            if self._in_time(f"scores of {way}", task, bars):
                self.checked.distances[way] = score()

    def _long_windows(self, voice: str) -> dict[str, Distance]:
        """Compare long coarse windows with stock's after a voice: without one, they only differ late."""
        import torch

        from bark_accel.bench.check import TEXTS, Request, inputs_of
        from bark_accel.bench.coarse_windows import long_window_distance, spoken
        from bark_accel.hf.stage_trace import trace_stages
        from bark_accel.hf.voices import resolve_voice

        stock, tokens = self._loaded.model, _tokens_of(self._loaded.model, LONG_WINDOWS_S)
        torch.manual_seed(self._seed)
        with trace_stages(self._accelerated) as trace:
            inputs = inputs_of(self._loaded, Request(TEXTS[0], voice, True, self._seed))
            self._accelerated.generate(**inputs, semantic_max_new_tokens=tokens)
        preset = resolve_voice(self._loaded.processor, voice)
        said = spoken(stock, trace.outputs["semantic"], trace.outputs["coarse"], preset)
        return {"coarse": long_window_distance(stock, said)}

    def _sounds(self, bars: Progress) -> None:
        """Compare sounds of the sampled utterances without a voice that stock has said."""
        from bark_accel.bench.approximations import ANOTHER_DRAW, WAYS, Utterance, sound_distances
        from bark_accel.bench.check import inputs_of

        said = [
            Utterance(
                {**inputs_of(self._loaded, one.request), "semantic_max_new_tokens": self._tokens},
                one.request.seed,
                one.stock.outputs["coarse"],
            )
            for one in self.checked.compared
            if one.request.do_sample and one.request.voice is None
        ]
        task = bars.add_task("approximate sound", total=1 + len(WAYS))
        if self._budget.is_up:
            self.checked.left_out += [f"sound of {way}" for way in (ANOTHER_DRAW, *WAYS)]
            return
        for way, distance in sound_distances(
            self._loaded.model,
            _begun_within(HEARD_S, said[:HEARD]),
            likelihood=False,
            speakers=self._speakers,
            wanted=lambda way: self._in_time(f"sound of {way}", task, bars),
        ):
            self.checked.sounds[way] = distance

    def _rank(self, bars: Progress) -> None:
        """Rank the checkpoint's voices, the one that holds best first."""
        import torch

        from bark_accel.bench.check import TEXTS, Request, english_voices, inputs_of
        from bark_accel.bench.voices import Presets, rank_voices
        from bark_accel.hf.voices import resolve_voice

        assert self._speakers is not None
        loaded = self._loaded
        with user_errors(OSError, ValueError):
            found = {name: resolve_voice(loaded.processor, name) for name in english_voices(loaded)}
            voices = {name: its for name, its in found.items() if its is not None}
            presets = Presets(loaded.model, voices, self._speakers)
        tokens = _tokens_of(loaded.model, VOICE_S)

        def say(text: str, voice: str) -> Tensor:
            inputs = inputs_of(loaded, Request(text, voice, True, self._seed))
            torch.manual_seed(self._seed + TEXTS.index(text))
            return self._accelerated.generate(**inputs, semantic_max_new_tokens=tokens)[0].float().cpu()

        task = bars.add_task("voices", total=len(TEXTS) * len(voices))
        held: list[Held] = []
        for held in rank_voices(presets, TEXTS, say, seconds=self._budget.left(), at_least=AT_LEAST):
            self.checked.voices = held
            bars.advance(task)
        self.checked.left_out += [f"voice {name}" for name in voices.keys() - {one.voice for one in held}]

    def _kernels(self, inputs: dict[str, Any]) -> None:
        """Count the kernels per token of each model and stage, on a GPU."""
        from bark_accel.bench.launches import kernels_per_token, stage_launches, tokens_of_a_row

        found = {}
        for name, model in (("stock", self._loaded.model), ("accelerated", self._accelerated)):
            try:
                counts, run = stage_launches(model, dict(inputs), self._seed, on_gpu=True)
            except RuntimeError as error:  # a driver may keep its counters to the administrator
                self.checked.kernels = str(error).partition("\n")[0]
                return
            found[name] = kernels_per_token(counts, tokens_of_a_row(run))
        self.checked.kernels = found


def fitting_tokens(runs: Sequence[Run], seconds: float) -> int:
    """Count the semantic tokens of an utterance that takes all `runs`' models as many seconds: below 1 for too few.

    Time of the semantic and coarse stages grows with them, that of a fine window and the codec hardly.
    """
    fixed = sum(run.seconds["fine"] + run.seconds["codec"] for run in runs)
    growing = sum(run.seconds["semantic"] + run.seconds["coarse"] for run in runs)
    return math.floor((seconds - fixed) / growing * runs[0].outputs["semantic"].shape[-1])


def _tokens_of(model: BarkModel, seconds: float) -> int:
    """Semantic tokens of as many seconds, or as many as the model can say."""
    from bark_accel.bench.models import max_semantic_tokens, semantic_tokens

    try:
        return semantic_tokens(model, seconds)
    except ValueError:
        return max_semantic_tokens(model)


def _begun_within(seconds: float, utterances: list[Utterance]) -> Iterator[Utterance]:
    """The first, and those that are asked for before the time is up."""
    end = time.monotonic() + seconds
    for number, utterance in enumerate(utterances):
        if number and time.monotonic() > end:
            return
        yield utterance
