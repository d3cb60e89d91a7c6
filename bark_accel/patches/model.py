"""`BarkModel.generate` and `BarkModel.codec_decode` of an accelerated instance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel._forked import avoid_lost_threads
from bark_accel.hf.configs import GenerationConfigs, sample_rate
from bark_accel.hf.inputs import check_arguments, check_not_meta, check_numbers, check_processors, check_texts
from bark_accel.hf.offload import device_of, is_offloaded
from bark_accel.hf.points import SUBMODELS, submodels
from bark_accel.hf.presets import VIEW, traced, traced_presets
from bark_accel.ops.backend import runs_natively
from bark_accel.ops.float32_choice import Float32Choice, choice
from bark_accel.report import AccelerationError, Fallback, attempt
from bark_accel.stages.ragged import trim_rows
from bark_accel.streaming.progress import Progress, check_progress, reported
from bark_accel.streaming.streamer import AudioSource, AudioStreamer
from bark_accel.voices.voices import Voices

from .audio_generation import AudioGeneration
from .coarse import CoarsePatch, check_coarse_streamer
from .fine import CodecPatch, check_fine_codebooks
from .points import StagePatches, not_patched, stage_patch
from .prepared import Prepared, handed_codec
from .request import Request, arguments_by_stage
from .stage_patch import Settings
from .stage_progress import PROGRESS
from .token_loop import TokenTap


class ModelPatch(AudioSource):
    """Owns the whole model.

    The data flow between the stages stays Transformers' own `generate`, which calls the sub-models' patches.
    """

    def __init__(self, module: BarkModel, settings: Settings):
        self.module = module
        self.settings = settings
        self.patched_submodels = [*submodels(module).values()]

    @property
    def sampling_rate(self) -> int:
        return sample_rate(self.module)

    def float32_choice(self) -> Float32Choice | None:
        """Return who computes float32 blocks of tokens, or None unless our ops do so on a CPU."""
        module, settings, device = self.module, self.settings, device_of(self.module)
        exact = settings.precision == "same" and module.dtype == torch.float32
        on_cpu = device.type == "cpu" and runs_natively(settings.backend, device)
        return choice() if exact and on_cpu else None

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        history_prompt: object = None,
        return_output_lengths: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `BarkModel.generate`. An empty utterance gives an empty waveform, where Transformers fails.

        `history_prompt` may also be a list with a voice preset (or None) for each row, and `trim=True` returns a list
        of waveforms [S_i] in place of [B, S]. With such a list, with "batch_tails" fixed, and with an `AudioStreamer`
        as `streamer`, where the waveform is what was streamed, rows are silent after their end. `progress` is as
        `accelerate_bark` says.
        """
        avoid_lost_threads()
        patch, trim = self._for_call(kwargs), _trim(kwargs)
        streamer, with_lengths = kwargs.get("streamer"), bool(return_output_lengths) or trim
        with reported(kwargs.pop("progress", None)) as progress:
            if isinstance(streamer, AudioStreamer):
                audio, lengths = patch._stream(kwargs.pop("streamer"), input_ids, history_prompt, kwargs, progress)
            else:
                audio, lengths = patch._run(input_ids, history_prompt, with_lengths, kwargs, progress)
        result = trim_rows(audio, lengths) if trim else audio
        return (result, lengths) if return_output_lengths else result

    def _run(
        self,
        input_ids: Any,
        history_prompt: object,
        with_lengths: bool,
        kwargs: dict[str, Any],
        progress: Progress | None,
    ) -> tuple[Tensor, list[int]]:
        """The waveform [B, S] and, if asked for, the samples of each row."""
        request = self._check(input_ids, history_prompt, kwargs)
        # Only with lengths are rows silent after their end.
        if with_lengths or self.codec_patch().rows_end(request.voices):
            return self._run_told(self.module, request, progress, with_lengths=True)
        return self._run_told(self.module, request, progress, with_lengths=False), []

    def _run_told(self, module: BarkModel, request: Request, progress: Progress | None, **others: Any) -> Any:
        """Transformers' own `generate`, over stages that tell how far they are."""
        if progress is None:
            return request.run_stock(module, **others)
        ours = (stage for stage, submodel in submodels(module).items() if stage_patch(submodel) is not None)
        told: dict[str, Any] = {f"{stage}_{PROGRESS}": progress for stage in ours}
        result = request.run_stock(module, **others, **told)
        progress.complete("sound")
        return result

    def _stream(
        self,
        streamer: AudioStreamer,
        input_ids: Any,
        history_prompt: object,
        kwargs: dict[str, Any],
        progress: Progress | None,
    ) -> tuple[Tensor, list[int]]:
        """Generate to a streamer; return audio [B, S] in the model's dtype, on its device, and each row's samples."""
        chunks: list[Tensor] = []

        def emit(chunk: Tensor) -> None:
            # A copy, because a listener may change what it gets.
            streamer.deliver(chunk.clone())
            chunks.append(chunk)

        with streamer.producing():
            self._check_streamer(streamer, kwargs)
            request = self._check(input_ids, history_prompt, kwargs, streamed=True)
            patches = partial(StagePatches.of, self.module, self.settings)
            generation = attempt(lambda: AudioGeneration(patches(), request, streamer, emit, progress))
            if isinstance(generation, Fallback):
                self._stream_one_chunk(streamer, request, generation, emit, progress)
            else:
                self._stream_chunks(streamer, request, generation)
        audio = torch.cat(chunks, dim=1) if chunks else self._silence(len(input_ids))
        lengths = streamer.row_lengths_samples or [audio.shape[1]] * audio.shape[0]
        return audio.to(device_of(self.module), self.module.dtype), [min(n, audio.shape[1]) for n in lengths]

    def _stream_chunks(self, streamer: AudioStreamer, request: Request, generation: AudioGeneration) -> None:
        bugs, config = self.settings.stock_bugs, request.configs.semantic
        bugs.check_text(request.input_ids, request.attention_mask, config.max_input_semantic_length)
        generation.run()
        bugs.check_ended(config, generation.semantic_tokens, request.arguments("semantic"))
        streamer.presets = generation.presets()

    def _stream_one_chunk(
        self,
        streamer: AudioStreamer,
        request: Request,
        fallback: Fallback,
        emit: Callable[[Tensor], None],
        progress: Progress | None,
    ) -> None:
        """The whole waveform at once, where nothing can be given out early.

        Raises `TypeError` for a caller's processors: Transformers' own `generate` would, after other stages' work.
        """
        self.settings.log.note(fallback)
        for stage in ("semantic", "coarse"):
            if "logits_processor" in request.arguments(stage):
                raise TypeError(f"{stage}_logits_processor: expected none where no tokens are streamed, {fallback}")
        # So that a listener who leaves is noticed; beams, of the other stages, take no streamer.
        taps = {"streamer": TokenTap(streamer.check)} if fallback.reason.stage in ("fine", "codec") else {}
        with traced(self.module) as (view, trace):
            audio, lengths = self._run_told(view, request, progress, with_lengths=True, **taps)
        streamer.presets = traced_presets(view, trace, lengths)
        streamer.row_lengths_samples = lengths
        streamer.check()
        if audio.shape[1] > 0:
            emit(audio.float().cpu())

    @torch.no_grad()
    def check(
        self,
        input_ids: Any = None,
        history_prompt: object = None,
        return_output_lengths: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise what `generate` with these arguments would raise before any work."""
        patch, _ = self._for_call(kwargs), _trim(kwargs)
        check_progress(kwargs.pop("progress", None))
        streamed = isinstance(kwargs.get("streamer"), AudioStreamer)
        if streamed:
            patch._check_streamer(kwargs.pop("streamer"), kwargs)
        request = patch._check(input_ids, history_prompt, kwargs, streamed=streamed)
        with suppress(Fallback):
            for stage, prepare in [*patch._preparations(request).items()][:2]:
                request.once(stage, prepare)

    def _preparations(self, request: Request) -> dict[str, partial[Any]]:
        """List, by stage, what is done before any work; raises `Fallback` where a sub-model is not ours."""
        patches, configs, rows = StagePatches.of(self.module, self.settings), request.configs, request.rows
        spec = patches.coarse.spec(configs.coarse_spec, request.voices)
        return {
            "semantic": partial(patches.semantic.prepare, configs.semantic, rows, request.arguments("semantic")),
            "coarse": partial(patches.coarse.prepare, spec, configs.coarse, rows, request.arguments("coarse")),
            "fine": partial(patches.fine.prepare),
            "codec": partial(patches.codec.ready_stage),
        }

    def _check_streamer(self, streamer: AudioStreamer, kwargs: dict[str, Any]) -> None:
        if streamer.sampling_rate != self.sampling_rate:
            got = f"{streamer.sampling_rate}, this model has {self.sampling_rate}"
            raise ValueError(f"streamer: expected one made for this model, got one with a sampling rate of {got}")
        if any("streamer" in arguments for arguments in arguments_by_stage(kwargs).values()):
            raise ValueError("streamer: expected one for audio or those for tokens, got both")

    def _for_call(self, kwargs: dict[str, Any]) -> ModelPatch:
        """The patch that drives a call: itself, or a copy on the view or with the generation config that are asked for.

        Takes both out of the arguments.
        """
        patch, module = self, kwargs.pop(VIEW, self.module)
        config = kwargs.get("generation_config")
        if config is not None and self.settings.stock_bugs.fixes("ignored_generation_config"):
            module = copy.copy(module)
            module.generation_config = kwargs.pop("generation_config")
        if module is not self.module:
            patch = copy.copy(self)
            patch.module = module
        return patch

    def _check(
        self, input_ids: Any, history_prompt: object, kwargs: dict[str, Any], *, streamed: bool = False
    ) -> Request:
        """Raise for bad input, before any work is done."""
        configs, stage_kwargs = GenerationConfigs.of(self.module), arguments_by_stage(kwargs)
        for stage, arguments in stage_kwargs.items():
            # With audio streamed, token loops take the caller's processors after Bark's own.
            check_arguments(stage, arguments, {"logits_processor"} if streamed else ())
            check_processors(arguments.get("logits_processor"))
        max_tokens = configs.semantic.max_input_semantic_length
        check_numbers(kwargs)
        rows = check_texts(self.module.semantic, configs.semantic, input_ids, kwargs.get("attention_mask"))
        voices = Voices.read(history_prompt, rows, configs.code_limits).to(device_of(self.module))
        check_fine_codebooks(self.module.fine_acoustics, configs.fine)
        check_coarse_streamer(stage_kwargs["coarse"].get("streamer"), voices)
        bugs = self.settings.stock_bugs
        kwargs = bugs.with_min_eos_p(configs.semantic, kwargs)
        for name in ("generation_config", *(f"{stage}_generation_config" for stage in stage_kwargs)):
            if kwargs.get(name) is not None:
                bugs.warn_once(f"BarkModel.generate ignores {name}=; change model.generation_config instead")
        if bugs.fixes("cut_text"):
            bugs.check_text(input_ids, kwargs.get("attention_mask"), max_tokens)
        bugs.fine_temperature(configs.fine, stage_kwargs["fine"])
        self._check_patched()
        request = Request(input_ids, voices, configs, kwargs)
        if self.settings.log.strict:
            self._check_all_stages(request)
        if self.settings.long_coarse_windows:
            self._check_coarse_windows(request)
        check_not_meta(self.module)
        return request

    def codec_decode(self, fine_output: Tensor, output_lengths: Tensor | None = None) -> Tensor | list[Tensor]:
        """See `BarkModel.codec_decode`. No frames give no samples, where Transformers fails."""
        if fine_output.shape[-1] == 0:
            empty = self._silence(fine_output.shape[0]).to(fine_output.device)
            return empty if output_lengths is None else list(empty)
        stage = attempt(lambda: handed_codec(self.module.codec_model) or self.codec_patch().ready_stage())
        if isinstance(stage, Fallback):
            self.settings.log.note(stage)
            return type(self.module).codec_decode(self.module, fine_output, output_lengths)
        latents = stage.embed(fine_output)
        if output_lengths is None:
            return stage.decode(latents)
        # The LSTM would hear the padding, so rows of different length are decoded one by one, as in Transformers.
        rows = zip(latents, output_lengths, strict=False)
        return [stage.decode(row[None, :, :length])[0] for row, length in rows]

    def _silence(self, rows: int) -> Tensor:
        """A waveform [rows, 0]."""
        return torch.zeros(rows, 0, dtype=self.module.dtype, device=device_of(self.module))

    def codec_patch(self) -> CodecPatch:
        """Make a patch of the codec that the model has now."""
        return CodecPatch(self.module.codec_model, self.settings)

    def _check_all_stages(self, request: Request) -> None:
        """Raise `AccelerationError` for what a later stage could not do, before any work is done."""
        for stage, prepare in self._preparations(request).items():
            prepared = attempt(prepare)
            if isinstance(prepared, Fallback):
                self.settings.log.note(prepared)
            else:
                self._hand_over(request, stage, Prepared(prepared, prepare.args))

    def _hand_over(self, request: Request, stage: str, prepared: Prepared[Any]) -> None:
        """Have a stage take what the check has prepared of it; weights that accelerate moves are gone until then."""
        if not is_offloaded(SUBMODELS[stage].owner(self.module) if stage in SUBMODELS else self.module.codec_model):
            request.prepared[stage] = prepared

    def _check_coarse_windows(self, request: Request) -> None:
        """Raise `AccelerationError` where Transformers would have to run the coarse stage."""
        patch, configs = stage_patch(self.module.coarse_acoustics), request.configs
        if not isinstance(patch, CoarsePatch):
            raise AccelerationError(not_patched("coarse").reason)
        spec = patch.spec(configs.coarse_spec, request.voices)
        arguments = spec, configs.coarse, request.rows, request.arguments("coarse")
        prepared = request.once("coarse", lambda: patch.prepare(*arguments))
        self._hand_over(request, "coarse", Prepared(prepared, arguments))

    def _check_patched(self) -> None:
        for stage, submodel in submodels(self.module).items():
            if stage_patch(submodel) is None:
                self.settings.log.record(not_patched(stage).reason)


def _trim(kwargs: dict[str, Any]) -> bool:
    """Takes `trim` out of the arguments; raises `TypeError` unless it is a bool."""
    trim = kwargs.pop("trim", False)
    if not isinstance(trim, bool):
        raise TypeError(f"trim: expected True or False, got {trim!r}")
    return trim
