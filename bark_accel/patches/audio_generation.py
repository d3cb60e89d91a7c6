"""`BarkModel.generate(..., streamer=AudioStreamer)` of an accelerated instance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bark_accel.hf.offload import device_of
from bark_accel.hf.presets import presets_of
from bark_accel.report import Fallback, FallbackKind
from bark_accel.stages.fine import FineStage
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.loops import TokenListener, run_coarse, run_semantic
from bark_accel.streaming.pipeline import ChunkDecoder, repad
from bark_accel.streaming.policies import Policy, make_policy
from bark_accel.streaming.progress import Progress
from bark_accel.streaming.streamer import AudioStreamer
from bark_accel.voices.preset import VoicePreset

from .points import StagePatches
from .request import Request
from .stage_progress import counting, longest
from .stage_runs import CompiledRun, LoopRun, StageRun
from .stream_plan import stream_plan

# Fallback kinds for which Transformers calls no streamer.
_NO_TOKENS = {FallbackKind.GENERATION_MODE, FallbackKind.EXTRA_OUTPUTS}


class AudioGeneration:
    """One utterance (or a batch of them), given out chunk by chunk."""

    def __init__(
        self,
        patches: StagePatches,
        request: Request,
        streamer: AudioStreamer,
        emit: Callable[[Tensor], None],
        progress: Progress | None = None,
    ):
        """Raises `Fallback` where there can be no more than one chunk."""
        for stage in ("semantic", "coarse"):
            if request.arguments(stage).get("custom_generate") is not None:
                raise Fallback(stage, FallbackKind.ARGUMENTS, "custom_generate, a loop of the caller's own")
        self._patches = patches
        self._request = request
        self._streamer = streamer
        self._progress = Progress(lambda *told: None) if progress is None else progress
        self._spec = patches.coarse.spec(request.configs.coarse_spec, request.voices)
        self._compiled = CompiledRun(patches, request, self._spec, own_generators=bool(streamer.interleave))
        self._fallbacks = self._compiled.fallbacks
        loops = LoopRun(patches, request, self._spec, self._fallbacks)
        self._semantic_run: StageRun = loops if "semantic" in self._fallbacks else self._compiled
        self._coarse_run: StageRun = loops if "coarse" in self._fallbacks else self._compiled
        for fallback in self._fallbacks.values():
            if fallback.reason.kind in _NO_TOKENS or not request.voices.shared:
                raise fallback
        codec = request.once("codec", patches.codec.ready_stage)
        if request.rows > 1 and not codec.cuts_right_only:
            raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, "rows that end at different times")
        chosen = self._compiled.greedy if streamer.interleave is None else streamer.interleave
        self._interleaved = chosen and not self._fallbacks
        if not self._fallbacks:
            streamer.plan = stream_plan(streamer, patches, request, self._spec, interleaved=self._interleaved)
        self._emit = emit
        self._decoder = ChunkDecoder(self._policy(), codec, self._spec, self._give_out)
        self.semantic_tokens: Tensor | None = None
        """[B, T], once all are there."""

    def run(self) -> None:
        """Generate and emit."""
        for fallback in self._fallbacks.values():
            self._patches.semantic.settings.log.note(fallback)
        progress = self._progress
        to_decoder = counting(progress, "coarse", TokenListener(self._streamer.check, self._decoder.push))
        progress.begin("semantic", self._most_tokens)
        if self._interleaved:
            self.semantic_tokens = self._run_interleaved(to_decoder)
        else:
            listener = counting(progress, "semantic", TokenListener(self._streamer.check))
            self.semantic_tokens = self._semantic_run.semantic(listener)
            progress.end("semantic")
            tokens = self._repadded(self.semantic_tokens)
            self._decoder.set_semantic(tokens, final=True)
            self._begin_sound(self._decoder.total_frames or 0)
            self._tell_lengths()
            self._coarse_run.coarse(tokens, to_decoder)
            self._decoder.end()
        self._tell_lengths()
        progress.end("coarse")
        progress.end("sound")

    def presets(self) -> list[VoicePreset] | None:
        """The voice preset of each row, once all of it was given out; None without the fine codebooks."""
        tokens, codes, lengths = self.semantic_tokens, self._decoder.codes, self._decoder.row_lengths_samples
        if self._streamer.policy == "preview" or tokens is None or lengths is None:
            return None
        configs = self._request.configs
        if codes is None:
            codes = tokens.new_zeros(len(tokens), configs.fine.n_fine_codebooks, 0)
        return presets_of(tokens, codes, lengths, configs.semantic.semantic_pad_token, self._spec.num_codebooks)

    def _run_interleaved(self, to_decoder: TokenListener) -> Tensor:
        """Generate coarse tokens as soon as the semantic tokens so far settle them; return the semantic ones."""
        codebooks = self._spec.num_codebooks
        self._begin_sound(int(self._most_tokens * self._spec.tokens_per_semantic) // codebooks)
        with self._compiled.started_semantic() as (stage, state), self._compiled.started_coarse() as rows:
            waiting: list[Tensor] = []

            def to_coarse(tokens: Tensor) -> None:
                waiting.append(tokens)
                if len(state.tokens) < rows.needed_semantic and not state.done:
                    return
                rows.push(self._repadded(torch.stack(waiting, dim=1)), final=state.done)
                waiting.clear()
                self._decoder.set_semantic(self._repadded(state.result()), final=state.done)
                if state.done:
                    frames = self._decoder.total_frames or 0
                    self._progress.end("semantic")
                    self._progress.expect("coarse", frames * codebooks)
                    self._progress.expect("sound", frames)
                run_coarse(rows, to_decoder)

            listener = TokenListener(self._streamer.check, to_coarse)
            return run_semantic(stage, state, counting(self._progress, "semantic", listener))

    @property
    def _most_tokens(self) -> int:
        return longest(self._request.configs.semantic, self._request.arguments("semantic"))

    def _begin_sound(self, frames: int) -> None:
        self._progress.begin("coarse", frames * self._spec.num_codebooks)
        self._progress.begin("sound", frames)

    def _give_out(self, chunk: Tensor) -> None:
        self._emit(chunk)
        self._progress.reach("sound", self._decoder.frames)

    def _repadded(self, semantic_tokens: Tensor) -> Tensor:
        return repad(self._request.configs.semantic_spec, self._spec, semantic_tokens)

    def _policy(self) -> Policy:
        """Make what decides how the sound is cut."""
        patch, request = self._patches.fine, self._request
        spec = patch.spec(request.configs.fine_spec, request.voices)

        def fine() -> tuple[FineStage, FineSampling]:
            stage = patch.ready_stage(request.once("fine", patch.prepare), spec)
            temperature = patch.settings.stock_bugs.fine_temperature(request.configs.fine, request.arguments("fine"))
            return stage, FineSampling(temperature, before_pass=self._streamer.check)

        upcoming = self._compiled.upcoming_generator()
        return make_policy(self._streamer, spec, device_of(patch.module), request.voices.fine, fine, upcoming)

    def _tell_lengths(self) -> None:
        self._streamer.row_lengths_samples = self._decoder.row_lengths_samples
