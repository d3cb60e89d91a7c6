"""A fine window's passes as one CUDA graph: one launch and one wait, where each pass had some 150 and a wait.

A graph predicts all frames of windows of one shape, and keeps those that were given: where a window begins to be
written is a number in device memory, so that one graph serves every voice preset and every chunk of a stream. The noise
is drawn before, by torch, from the generation's own generator: pass after pass as many numbers as the passes themselves
would draw, which are the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from bark_accel.decoding.graph_capture import Capturer, has_graphs, make_capturer, why_not
from bark_accel.decoding.kept_graphs import KeptGraphs
from bark_accel.decoding.sampling import SampleRules, TokenRange
from bark_accel.ops.backend import Ops
from bark_accel.ops.sample_checks import raise_bad_rows
from bark_accel.transformer.weights import TransformerWeights, map_tensors, tensors_of

from .fine_sampling import FineSampling, fine_config
from .spec import FineSpec

# More rows keep a GPU busy without graphs, and their noise would take much memory: 25 MB a row with suno's models.
MOST_ROWS = 4
# Bound of the shapes and temperatures kept.
MAX_KEPT = 4

# Scores [B, T, ids] float32 of a codebook, from weights and codes [B, T, K].
Scores = Callable[[TransformerWeights, Tensor, int], Tensor]


class WindowGraph:
    """The passes over windows [B, T, K] of one shape. Serves one generation at a time.

    Holds no weights: matrices are read where they stand, LayerNorms and biases from copies that `fill` refreshes.
    """

    def __init__(self, capturer: Capturer, weights: TransformerWeights, spec: FineSpec, shape: tuple[int, int]):
        (rows, frames), device = shape, weights.device
        self._capturer, self._spec = capturer, spec
        # Born in inference mode they could not be written outside of it by a later call.
        with torch.inference_mode(False):
            self._codes = torch.zeros(rows, frames, spec.num_codebooks, dtype=torch.int64, device=device)
            self._first = torch.zeros(1, dtype=torch.int64, device=device)
            self._frames = torch.arange(frames, dtype=torch.int64, device=device)
            self._vectors = [torch.empty_like(t) for t in vectors(weights)]
            self._noise: list[Tensor] = []
        self._rules: SampleRules | None = None
        self._replay: Callable[[], None] | None = None
        self.usable = True
        self.fault: str | None = None

    def __len__(self) -> int:
        return int(self._replay is not None)

    def fill(
        self, weights: TransformerWeights, ops: Ops, scores: Scores, window: Tensor, first: int, sampling: FineSampling
    ) -> bool:
        """Predict codebook after codebook of `window` in place, from frame `first` on; False where it cannot be.

        Then nothing has happened, and `fault` says why.

        Raises
        ------
        ValueError
            Scores are not numbers.
        """
        torch._foreach_copy_(self._vectors, vectors(weights))
        if self._replay is None and not self._capture(weights, ops, scores, sampling):
            return False
        assert self._replay is not None
        self._codes.copy_(window)
        self._first.fill_(first)
        self._draw_noise(first, sampling.generator or sampling.source)
        self._replay()
        self._check()
        window[:, first:] = self._codes[:, first:]
        return True

    def _capture(self, weights: TransformerWeights, ops: Ops, scores: Scores, sampling: FineSampling) -> bool:
        rows, frames, _ = self._codes.shape
        ids, device = self._spec.codebook_size, self._codes.device
        config = fine_config(sampling.temperature)
        rules = SampleRules.of([(config, TokenRange(0, ids))], device)
        with torch.inference_mode(False):
            if config.do_sample:
                self._noise = [
                    torch.ones(rows, frames, ids, dtype=torch.float32, device=device) for _ in self._predicted
                ]
        own = with_vectors(weights, self._vectors)

        def passes() -> None:
            kept = self._frames < self._first
            for index, codebook in enumerate(self._predicted):
                logits = scores(own, self._codes, codebook).flatten(0, 1)
                noise = self._noise[index].flatten(0, 1) if config.do_sample else None
                drawn = ops.fused_sample(logits, noise, *rules.arguments).view(rows, frames)
                self._codes[:, :, codebook] = torch.where(kept, self._codes[:, :, codebook], drawn)

        self.usable = False
        try:
            self._replay = self._capturer.capture(passes, None)
        except RuntimeError as error:
            self.fault = why_not(error)
            return False
        self.usable, self._rules = True, rules
        return True

    @property
    def _predicted(self) -> range:
        return range(self._spec.num_coarse_codebooks, self._spec.num_codebooks)

    def _draw_noise(self, first: int, source: Generator | None) -> None:
        """Draw as the passes do: for each frame from `first` to the end of a whole window, be it a fitting one."""
        rows, frames, _ = self._codes.shape
        for noise in self._noise:
            drawn = noise.new_empty(rows, self._spec.max_input_frames - first, noise.shape[2])
            noise[:, first:] = drawn.exponential_(generator=source)[:, : frames - first]

    def _check(self) -> None:
        """Refuse codes that stand for a status; the one wait for the device."""
        if not bool((self._codes < 0).any()):
            return
        for codebook in self._predicted:
            raise_bad_rows("fine window", self._codes[:, :, codebook].flatten().cpu())


class WindowGraphs(KeptGraphs[WindowGraph]):
    """Keeps the graphs of one model's windows between calls, as long as all that they read stands where it stood."""

    def __init__(self, what: str = "the fine stage's window", most: int = MAX_KEPT):
        super().__init__(what, most)

    def take(self, device: torch.device, rows: int, sampling: FineSampling) -> bool:
        """Tell whether windows of so many rows are filled by a graph."""
        temperature = sampling.temperature or 1.0
        fits = rows <= MOST_ROWS and sampling.draw is None and 0 < temperature < math.inf
        return fits and self.fault is None and has_graphs(device)

    def fill(
        self,
        weights: TransformerWeights,
        spec: FineSpec,
        ops: Ops,
        scores: Scores,
        window: Tensor,
        first: int,
        sampling: FineSampling,
    ) -> bool:
        """Do as `WindowGraph.fill`."""
        shape = window.shape[0], window.shape[1]

        def make() -> WindowGraph | None:
            capturer = make_capturer(window.device)
            return None if capturer is None else WindowGraph(capturer, weights, spec, shape)

        key = shape, spec, sampling.temperature or 1.0, *places(weights)
        with self.lend(key, make) as graph:
            return graph is not None and graph.fill(weights, ops, scores, window, first, sampling)


def vectors(weights: TransformerWeights) -> list[Tensor]:
    """1-D parameters; of 16-bit models new copies at every call."""
    return [t for t in tensors_of(weights) if t.dim() == 1]


def with_vectors(weights: TransformerWeights, given: list[Tensor]) -> TransformerWeights:
    """The same weights with other vectors."""
    replacement = iter(given)
    return map_tensors(weights, lambda t: next(replacement) if t.dim() == 1 else t)


def places(weights: TransformerWeights) -> tuple:
    """Equal for weights whose graphs are interchangeable."""
    matrices = [(t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for t in tensors_of(weights) if t.dim() > 1]
    return (*matrices, *((t.dtype, t.shape) for t in vectors(weights)))
