"""Says the chunks of a long text: through an engine, or, what an engine cannot do, with `generate` one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel.decoding.rng import seeded
from bark_accel.engine.errors import NotShared
from bark_accel.engine.request import SpeechRequest
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.offload import device_of
from bark_accel.hf.presets import check_generate, generate_with_presets
from bark_accel.longform.reader import Saying
from bark_accel.longform.utterance import Utterance
from bark_accel.ops.idle_threads import copied
from bark_accel.streaming.listening import check_arguments, stream
from bark_accel.streaming.plan import StreamSpeed
from bark_accel.streaming.streamer import AudioStreamer
from bark_accel.voices.preset import VoicePreset
from bark_accel.voices.voices import Voices

from .engine import BarkEngine
from .model import ModelPatch
from .stage_progress import longest


class ChunkSpeaker:
    """A `Speaker`: see `bark_accel.longform.reader`.

    Parameters
    ----------
    processor : BarkProcessor
        Or what has its `tokenizer` and call.
    arguments : dict
        Of `generate`.
    policy : str, optional
        Of an `AudioStreamer`; None: nothing will be streamed.
    speed : StreamSpeed, optional
        Of an `AudioStreamer`.
    """

    def __init__(
        self,
        model: BarkModel,
        processor: Any,
        arguments: dict[str, Any],
        policy: str | None,
        speed: StreamSpeed | None = None,
    ):
        self.model, self.policy, self.speed = model, policy, speed
        self._processor = processor
        self._arguments = arguments
        configs = GenerationConfigs.of(model)
        semantic = configs.semantic
        self.max_tokens = semantic.max_input_semantic_length
        self.sampling_rate = configs.sample_rate
        self._code_limits = configs.code_limits
        self.frame_rate_hz: float = configs.coarse.coarse_rate_hz
        limits = [arguments.get(name) for name in ("semantic_max_new_tokens", "max_new_tokens")]
        given = next((limit for limit in limits if limit is not None), None)
        self._longest_s = longest(semantic, {"max_new_tokens": given}) / semantic.semantic_rate_hz
        self.utterance_s = self._longest_s if given is None else None
        check_generate(model)
        if given is None:
            # Said aloud, so that `generate` does not warn of what a chunk's `cut` says.
            self._arguments = {**arguments, "semantic_max_new_tokens": semantic.max_new_tokens}
        if policy is not None:
            AudioStreamer(model, policy=policy)  # raises for a model that is not accelerated

    @property
    def source(self) -> ModelPatch | None:
        """The patch of an accelerated model; None for others, and below a wrapper, which wants to be called."""
        owner = getattr(self.model.generate, "__self__", None)
        return owner if isinstance(owner, ModelPatch) else None

    def check(self, text: str, voice: VoicePreset | None) -> None:
        """Raise what an accelerated model would raise for a text before any work."""
        if self.policy is not None:
            streamer = AudioStreamer(self.model, policy=self.policy)
            check_arguments(self.model, {**self.inputs(text, voice), "streamer": streamer})
        elif self.source is not None:
            self.source.check(**self.inputs(text, voice))

    def count_tokens(self, text: str) -> int:
        return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def session(self, rows: int) -> ChunkSession:
        """See `Speaker`."""
        return ChunkSession(self, rows)

    def inputs(self, text: str, voice: VoicePreset | None) -> dict[str, Any]:
        """Arguments of `generate` for one text."""
        encoded = self._processor([text], max_length=self.max_tokens)
        device = device_of(self.model)
        inputs = {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}
        # Transformers' own code takes tensors of a signed type only.
        voices = Voices.read(voice, 1, self._code_limits, name="voice").to(device)
        return {**inputs, "history_prompt": voices.argument(), **self._arguments}

    def utterance(self, audio: Tensor, preset: VoicePreset | None) -> Utterance:
        """Put together what was generated."""
        # The stages round down to a whole frame.
        cut = len(audio) / self.sampling_rate > self._longest_s - 1 / self.frame_rate_hz
        audible = preset if len(audio) > 0 else None
        return Utterance(audio.detach().to("cpu", torch.float32).contiguous(), audible, cut)


class ChunkSession:
    """A `Session`: its engine is made for the first chunk that asks for one, and closed at the end."""

    def __init__(self, speaker: ChunkSpeaker, rows: int):
        self._speaker, self._rows = speaker, rows
        self._engine: BarkEngine | None = None
        self._at_end = ExitStack()

    def __enter__(self) -> ChunkSession:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._at_end.close()

    def say(self, text: str, voice: VoicePreset | None, seed: int, after: Saying | None) -> Saying:
        """See `Session`."""
        speaker = self._speaker
        if speaker.source is not None:
            try:
                return self._submitted(text, voice, seed, after)
            except NotShared:
                pass
        return _Alone(speaker, text, voice, seed)

    def _submitted(self, text: str, voice: VoicePreset | None, seed: int, after: Saying | None) -> _Submitted:
        speaker = self._speaker
        if self._engine is None:
            # As many again wait.
            self._engine = BarkEngine(speaker.model, max_rows=self._rows, max_queued=self._rows)
            self._at_end.callback(self._engine.close)
        heard_before = after.request if isinstance(after, _Submitted) else None
        inputs = speaker.inputs(text, voice)
        request = self._engine.submit(
            **inputs, seed=seed, policy=speaker.policy, speed=speaker.speed, after=heard_before
        )
        return _Submitted(speaker, request)


class _Submitted:
    """A `Saying` of an engine."""

    asked_for_last = False

    def __init__(self, speaker: ChunkSpeaker, request: SpeechRequest):
        self._speaker, self.request = speaker, request

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.request)

    def result(self) -> Utterance:
        return self._speaker.utterance(self.request.result(), self.request.preset)

    def add_done_callback(self, call: Callable[[], object]) -> None:
        self.request.add_done_callback(call)


class _Alone:
    """A `Saying` that `generate` makes when it is asked for, from torch's default generator."""

    asked_for_last = True

    def __init__(self, speaker: ChunkSpeaker, text: str, voice: VoicePreset | None, seed: int):
        self._speaker, self._seed = speaker, seed
        self._text, self._voice = text, voice
        self._streamed: Utterance | None = None

    def __iter__(self) -> Iterator[Tensor]:
        speaker, pieces = self._speaker, []
        assert speaker.policy is not None
        streamer = AudioStreamer(speaker.model, policy=speaker.policy, speed=speaker.speed)
        inputs = speaker.inputs(self._text, self._voice)
        with seeded(self._seed, device_of(speaker.model)):
            for piece in stream(speaker.model, **inputs, streamer=streamer):
                pieces.append(copied(piece[0]))
                yield piece[0]
        audio = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.float32, device="cpu")
        self._streamed = speaker.utterance(audio, streamer.presets[0] if streamer.presets else None)

    def result(self) -> Utterance:
        if self._streamed is not None:
            return self._streamed
        speaker = self._speaker
        with seeded(self._seed, device_of(speaker.model)):
            audio, (length,), (preset,) = generate_with_presets(
                speaker.model, **speaker.inputs(self._text, self._voice)
            )
        return speaker.utterance(audio[0, :length], preset)

    def add_done_callback(self, call: Callable[[], object]) -> None:
        """Never calls: it ends where it is asked for."""
