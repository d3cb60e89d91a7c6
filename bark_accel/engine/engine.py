"""The outside of an engine: takes requests from any thread, returns a `SpeechRequest` for each."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Protocol

from torch import Generator

from bark_accel._arguments import whole_number
from bark_accel._forked import avoid_lost_threads
from bark_accel.decoding.graph_capture import Capturer
from bark_accel.streaming.listening import on_current_stream
from bark_accel.streaming.plan import StreamSpeed
from bark_accel.streaming.policies import Chunking
from bark_accel.streaming.streamer import AudioStreamer
from bark_accel.transformer.causal import CausalModel

from .errors import EngineClosed
from .request import SpeechRequest
from .row import Plan, Row
from .scheduler import Scheduler
from .slots import Slots
from .worker import Worker


class Source(Protocol):
    """A model, as it is when the engine is made."""

    @property
    def models(self) -> list[CausalModel]:
        """The models of the causal stages, in their order."""

    def make_capturer(self) -> Capturer | None:
        """Return a new maker of graphs of shared steps; None where there are none."""

    def streamer(self, **chunking: Any) -> AudioStreamer:
        """A queue to a listener; raises for bad arguments, and for a model that has changed."""

    def prepare(
        self, arguments: dict[str, Any], chunking: Chunking | None, check: Callable[[], None], generator: Generator
    ) -> Plan:
        """Prepare a request, whose waveform is cut as `chunking` has it, or not at all.

        It draws from `generator`, and calls `check`, which may raise to stop it. Raises for bad arguments and for what
        cannot be done, before any work.
        """

    def check_weights(self) -> None:
        """Raise `ValueError` where the model's weights are not what they were when the engine was made."""


def make_row(
    source: Source,
    arguments: dict[str, Any],
    *,
    seed: int | None = None,
    policy: str | None = None,
    deadline_s: float | None = None,
    after: SpeechRequest | None = None,
    **chunking: Any,
) -> Row:
    """A request for a scheduler, with arguments of `generate`; for the others, and what is raised, see `submit`."""
    is_number = isinstance(deadline_s, Real) and not isinstance(deadline_s, bool)
    if deadline_s is not None and not (is_number and deadline_s > 0):
        raise ValueError(f"deadline_s: expected None or seconds > 0, got {deadline_s!r}")
    if not (seed is None or isinstance(seed, Integral)) or isinstance(seed, bool):
        raise TypeError(f"seed: expected None or an int, got {seed!r}")
    if seed is not None and not -(2**63) <= seed < 2**64:  # what torch.manual_seed takes
        raise ValueError(f"seed: expected an int from -2**63 to 2**64 - 1, got {seed}")
    if not (after is None or isinstance(after, SpeechRequest)):
        raise TypeError(f"after: expected None or a SpeechRequest, got {after!r}")
    streamer = source.streamer(policy="exact" if policy is None else policy, **chunking)
    generator = Generator(source.models[0].weights.device)
    seed = generator.seed() if seed is None else int(seed)
    generator.manual_seed(seed)
    request = SpeechRequest(streamer, seed, deadline_s, whole=policy is None, after=after)
    cut = None if policy is None else streamer
    return Row(source.prepare(arguments, cut, request.check, generator), request, source.check_weights)


class Engine:
    """Runs the requests of a source. See `bark_accel.BarkEngine`."""

    def __init__(self, make_source: Callable[[], Source], max_rows: int, max_queued: int):
        self.max_rows = whole_number("max_rows", max_rows, 1)
        self.max_queued = whole_number("max_queued", max_queued, 0)
        avoid_lost_threads()
        self._source: Source | None = make_source()
        slots = Slots(self._source.models, self.max_rows, self._source.make_capturer)
        self.cache_bytes = slots.nbytes
        scheduler = Scheduler(self._source.models, slots)
        self._worker = Worker(scheduler, self.max_rows, self.max_queued, on_current_stream())
        # Who drops an engine may hold its requests.
        weakref.finalize(self, self._worker.leave, drain=True).atexit = False

    @property
    def requests(self) -> int:
        """Number of requests that are not done."""
        return self._worker.unfinished

    @property
    def closed(self) -> bool:
        """Tell whether `submit` takes no more: after `close`, and where the engine has failed, which is a bug."""
        return self._worker.closed

    def submit(
        self,
        input_ids: Any = None,
        *,
        seed: int | None = None,
        policy: str | None = None,
        first_chunk_frames: int = 30,
        max_chunk_frames: int = 480,
        lookahead_frames: int = 15,
        speed: StreamSpeed | None = None,
        deadline_s: float | None = None,
        after: SpeechRequest | None = None,
        **generate_kwargs: Any,
    ) -> SpeechRequest:
        """Queue one utterance, and return at once.

        Parameters
        ----------
        input_ids : Tensor [1, T] int
            With `attention_mask` and `history_prompt`, as the processor gives them.
        seed : int, optional
            The audio is what `torch.manual_seed(seed)` before `model.generate` (with a policy: `stream`) gives. None:
            one that nobody knows beforehand, `request.seed`.
        policy : {"low_latency", "exact", "preview"}, optional
            As in `AudioStreamer`, like the lengths of chunks and `speed`. None: the whole waveform at once, which is
            `generate`'s.
        deadline_s : float, optional
            Seconds after which the request ends with `DeadlineExceeded`.
        after : SpeechRequest, optional
            What is heard before this one, such as the sentence before: nobody waits for this one until then.
        generate_kwargs
            Other arguments of `model.generate` that our loop has (sampling options, lengths; of one stage with its
            prefix), but for functions.

        Returns
        -------
        SpeechRequest
            Iterate over it, or take its `result()`.

        Raises
        ------
        EngineBusy
            `max_rows` and `max_queued` more requests are not done yet.
        EngineClosed
            After `close`.
        TypeError, ValueError
            What `generate` would raise before any work, for more than one row, for options that need Transformers' own
            loop or model, and for a model that has changed since the engine was made.
        """
        self._worker.check_open()
        row = make_row(
            self._open_source(),
            {"input_ids": input_ids, **generate_kwargs},
            seed=seed,
            policy=policy,
            deadline_s=deadline_s,
            after=after,
            speed=speed,
            first_chunk_frames=first_chunk_frames,
            max_chunk_frames=max_chunk_frames,
            lookahead_frames=lookahead_frames,
        )
        self._worker.add(row)
        return row.request

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, end the thread, and give up the caches and the model.

        Parameters
        ----------
        drain : bool
            Finish the requests that are there, however long it takes; whoever is interrupted in that (Ctrl-C) cancels
            them. Otherwise they end with `EngineClosed`, within the time of one prompt or one pass of the fine stage.
        """
        self._worker.close(drain=drain)
        self._source = None

    def _open_source(self) -> Source:
        source = self._source
        if source is None:  # closed a moment ago
            raise EngineClosed("BarkEngine: expected an open engine, got one that was closed")
        return source

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Finish what is there, or, where the block raised, cancel it."""
        self.close(drain=kind is None)
