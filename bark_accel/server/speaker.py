"""A loaded model that many requests share."""

from __future__ import annotations

import math
import re
import threading
from typing import Any

import numpy as np

from bark_accel import BarkEngine, SpeechRequest
from bark_accel.bench.models import SMALL_CHUNK_S, LoadedBark, text_tokens, unknown_words
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.voices import resolve_voice, voice_names
from bark_accel.longform.languages import CHARACTERS_PER_SECOND, characters_per_second
from bark_accel.longform.text import TextChunk, plan_chunks
from bark_accel.voices.preset import VoicePreset
from bark_accel.voices.voices import Voices

from .errors import ApiError
from .loading import greet, load_accelerated, text_inputs, weight_bytes
from .replicas.engine import Replica, ReplicatedEngine
from .replicas.messages import Order
from .settings import ModelSpec, Settings

# As `long_form` has it.
_CHUNK_S = 13.0
_LANGUAGE = re.compile(r"(?:^|/)([a-z]{2})_speaker")
# Weight of the newest request in the mean that `Retry-After` is made of.
_NEWEST = 0.2


class Speaker:
    """A model, its engine and its line: requests enter, are generated, and leave.

    Parameters
    ----------
    spec : ModelSpec
    loaded : LoadedBark
        Tokenizer, voices and settings are what is used of it.
    settings : Settings
    engine : BarkEngine or ReplicatedEngine
        Its own bound is never met: the line is shorter, and a long text has one chunk ahead of the one that is heard.
    weight_bytes : int
        Bytes of the weights, and of their copies in other precisions and layouts.
    """

    def __init__(
        self,
        spec: ModelSpec,
        loaded: LoadedBark,
        settings: Settings,
        engine: BarkEngine | ReplicatedEngine,
        weight_bytes: int,
    ):
        self.name = spec.name
        self.vocabulary = loaded.vocabulary
        self.voices = voice_names(loaded.processor)
        self.users = 0
        """Requests that have entered and not left."""
        self._loaded = loaded
        self._rows, self._queued = settings.rows, settings.max_queued
        self._engine, self._weight_bytes = engine, weight_bytes
        self._presets: dict[str, VoicePreset | None] = {}
        # Of the tokenizer, which is no thread's friend.
        self._lock = threading.Lock()
        self._mean_s = 1.0
        self.max_tokens = text_tokens(loaded, "")[1]
        configs = GenerationConfigs.of(loaded.model)
        self._code_limits, self._token_rate = configs.code_limits, configs.semantic.semantic_rate_hz
        self.sampling_rate = configs.sample_rate

    @classmethod
    def load(cls, spec: ModelSpec, settings: Settings) -> Speaker:
        """Load a model and let it speak once, so that nobody waits for what is done at first use."""
        if settings.replicas is not None:
            replicated = ReplicatedEngine(Order(spec, settings.max_rows, settings.cpus))
            return cls(spec, replicated.outline, settings, replicated, replicated.weight_bytes)
        loaded = load_accelerated(spec, settings.device)
        most = settings.max_rows + settings.max_queued
        engine = BarkEngine(loaded.model, max_rows=settings.max_rows, max_queued=2 * most)
        greet(engine, loaded)
        # Counted once: now the copies are made, and no other thread makes any.
        return cls(spec, loaded, settings, engine, weight_bytes(loaded))

    # The line.

    def enter(self) -> None:
        """Take a place; raises `ApiError` (429) where none is left."""
        if self.full:
            wait = max(1, min(60, math.ceil(self._mean_s * (self._queued + 1) / self._rows)))
            message = f"{self.name} has {self._rows} requests running and {self._queued} waiting; try again later"
            raise ApiError(429, message, code="busy", headers={"Retry-After": str(wait)})
        self.users += 1

    @property
    def full(self) -> bool:
        """No place is left."""
        return self.users >= self._rows + self._queued

    def leave(self) -> None:
        """Give the place back."""
        self.users -= 1

    def took(self, seconds: float) -> None:
        """Learn how long a request has rows, its chunks one by one; who reads it slowly is not counted."""
        self._mean_s += _NEWEST * (seconds - self._mean_s)

    @property
    def rows_in_use(self) -> int:
        return min(self._engine.requests, self._rows)

    @property
    def waiting(self) -> int:
        return max(0, self._engine.requests - self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, of their copies in other precisions and layouts, and of the engine's caches."""
        return self._weight_bytes + self._engine.cache_bytes

    @property
    def replicas(self) -> list[Replica]:
        """The processes that speak; none where this one does."""
        return self._engine.replicas if isinstance(self._engine, ReplicatedEngine) else []

    @property
    def failed(self) -> bool:
        """Tell whether the engine in this process has ended by itself: nobody takes its place."""
        return isinstance(self._engine, BarkEngine) and self._engine.closed

    # Texts and voices.

    def plan(self, text: str, voice: str | None) -> list[TextChunk]:
        """Cut a text into what the model says at once; raises `ApiError` for what it cannot say."""
        with self._lock:
            self._check_words(text)
            code = language_of(voice)
            seconds = _CHUNK_S if self.vocabulary is None else SMALL_CHUNK_S
            lengths = {"max_tokens": self.max_tokens, "max_characters": seconds * characters_per_second(code)}
            try:
                return plan_chunks(text, self._count_tokens, language=code, **lengths)  # type: ignore[arg-type]
            except ValueError as error:
                raise ApiError(400, f"input: {error}", param="input", code="invalid_text") from None

    def preset(self, voice: str | None) -> VoicePreset | None:
        """One of the model's own voices; None: what it says without any."""
        with self._lock:
            if voice not in self._presets:
                assert voice is None or voice in self.voices
                self._presets[voice] = resolve_voice(self._loaded.processor, voice)  # type: ignore[index]
            return self._presets[voice]  # type: ignore[index]

    def fits(self, preset: VoicePreset) -> bool:
        """Tell whether a voice is one of this kind of model."""
        try:
            self.check_preset(preset)
        except ApiError:
            return False
        return True

    def check_preset(self, preset: VoicePreset) -> None:
        """Raise `ApiError` for a voice of another kind of model."""
        try:
            Voices.read(preset, 1, self._code_limits, name="voice")
        except (TypeError, ValueError) as error:
            raise ApiError(400, f"{error} (a voice of another model?)", param="voice", code="invalid_voice") from None

    def submit(self, text: str, preset: VoicePreset | None, *, seed: int, policy: str, **options: Any) -> SpeechRequest:
        """Let the engine say one chunk."""
        with self._lock:
            ids = text_inputs(self._loaded, text, self.max_tokens)
        given = {name: value for name, value in options.items() if value is not None}
        return self._engine.submit(**ids, history_prompt=preset, seed=seed, policy=policy, **given)

    def tokens(self, text: str) -> int:
        """Tokens of a text."""
        with self._lock:
            return self._count_tokens(text)

    def spoken_tokens(self, samples: int) -> int:
        """Semantic tokens of so many samples."""
        return round(samples / self.sampling_rate * self._token_rate)

    def close(self) -> None:
        """End what is left, and the engine's thread."""
        self._engine.close()

    def _check_words(self, text: str) -> None:
        if self._count_tokens(text) == 0:
            raise ApiError(400, "input: expected words, got a text without any", param="input", code="no_words")
        unknown = [] if self.vocabulary is None else unknown_words(self._loaded, text)
        if unknown:
            words = ", ".join(unknown[:20])
            message = (
                f"the small Bark does not know: {words}. It says digits and these words: "
                f"{', '.join(self.vocabulary or ())}. For any other text serve another model, such as suno/bark-small"
            )
            raise ApiError(400, message, param="input", code="unknown_words")

    def _count_tokens(self, text: str) -> int:
        return text_tokens(self._loaded, text)[0]


def silence(seconds: float, rate: int) -> np.ndarray:
    """Samples [S] of nothing."""
    return np.zeros(round(seconds * rate), dtype=np.float32)


def language_of(voice: str | None) -> str:
    """The language of a voice's name, such as v2/de_speaker_3; English where it has none."""
    found = _LANGUAGE.search(voice or "")
    return found[1] if found and found[1] in CHARACTERS_PER_SECOND else "en"
