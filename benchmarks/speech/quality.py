"""Does the fast, 16-bit, int8 or streamed way sound worse? Word error rate of the small Bark, each way beside stock.

python -m benchmarks speech --json NEW.json --plot NEW.png

Texts that no training has seen and no setting was chosen by, each said once; pocketsphinx reads them with a grammar of
all texts of their kind. Every batch has a seed, the same for every way, so that what differs is the way: intervals of
differences are bootstrap over utterances of both. Every way leaves a file in --work, and is not generated again.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoProcessor, BarkModel

from bark_accel import AudioStreamer, accelerate_bark, long_form, small_bark_path
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import quiet_transformers
from bark_accel.hf.presets import generate_with_presets
from benchmarks.speech.figures import save_plot, table
from recipes.small_bark import layout
from recipes.small_bark.evaluate import KINDS, Heard, held, listen, say, texts
from recipes.small_bark.recogniser import Errors, rate_difference, word_error_rate
from recipes.small_bark.vocabulary import Kind, Split

# The largest number of phrases that the test split can give is 208.
COUNTS: dict[Kind, int] = {"digits": 400, "phrases": 200}
SEED = 2_027
BATCH = 16
# Sums have another order than stock's: audio differs by less than this, and in few utterances a token whose two
# likeliest values are a rounding error apart.
_SAME_AUDIO = 1e-5
_NEAR_TIES = 0.01
FIT, LONG = "fit_windows", "long_coarse_windows"
# With the small Bark's own histories its positions have room for one of stock's windows, with these for two.
SHORT_HISTORY_TOKENS = layout.COARSE_HISTORY - layout.COARSE_WINDOW
SHORT = f"stock, histories of {SHORT_HISTORY_TOKENS} tokens"


@dataclass(frozen=True)
class Way:
    """A way to generate.

    `weights` None is stock. `stream` holds the settings of an AudioStreamer. `share` of the texts are said. `as_stock`:
    the audio has to be that of stock with the same voice, but for near ties. `windows` are the options of
    `accelerate_bark` of that name, `coarse_positions` all that the coarse model is said to have.
    """

    weights: str | None = "same"
    stream: dict[str, Any] | None = None
    voice: str | None = None
    batch: int = BATCH
    share: float = 1.0
    as_stock: bool = False
    long_text: bool = False
    fix_stock_bugs: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    cache: str = "auto"
    coarse_history: int | None = None
    seed: int = 0

    @property
    def draws_as_stock(self) -> bool:
        """A stream whose semantic and coarse tokens are those of stock."""
        interleaved = self.stream is not None and self.stream.get("interleave")
        return self.stream is not None and self.weights == "same" and not interleaved and LONG not in self.windows

    @property
    def baseline(self) -> str:
        """Name of stock's way with the same voice and history."""
        if self.coarse_history is not None:
            return SHORT
        return "stock" if self.voice is None else f"stock, {self.voice}"


def low_latency(**settings: Any) -> dict[str, Any]:
    return {"policy": "low_latency", **settings}


# Beside the seed of all.
ANOTHER_SEED = 1_000_000

WAYS = {
    "stock": Way(None),
    "stock, another seed": Way(None, seed=ANOTHER_SEED),
    "float32": Way(as_stock=True),
    "float16": Way("float16"),
    "bfloat16": Way("bfloat16"),
    "int8": Way("int8"),
    "w8a8": Way("w8a8"),
    "float32, int8 cache": Way(cache="int8"),
    "int8, int8 cache": Way("int8", cache="int8"),
    "w8a8, int8 cache": Way("w8a8", cache="int8"),
    "float32, one at a time": Way(batch=1, share=0.4),
    "float32, rows as if alone": Way(fix_stock_bugs=("batch_tails",)),
    "exact": Way(stream={"policy": "exact"}, as_stock=True),
    "low_latency": Way(stream=low_latency()),
    "preview": Way(stream={"policy": "preview"}),
    "low_latency, interleave": Way(stream=low_latency(interleave=True)),
    "low_latency, int8": Way("int8", stream=low_latency()),
    "long coarse windows": Way(windows=(LONG,)),
    SHORT: Way(None, coarse_history=SHORT_HISTORY_TOKENS),
    "long coarse windows, the same histories": Way(windows=(LONG,), coarse_history=SHORT_HISTORY_TOKENS),
    "int8, the same histories": Way("int8", coarse_history=SHORT_HISTORY_TOKENS),
    "fitting windows, int8": Way("int8", windows=(FIT,)),
    # Others: streaming_layout.py.
    "low_latency, all chunks 15, lookahead 0": Way(
        stream=low_latency(first_chunk_frames=15, max_chunk_frames=15, lookahead_frames=0), share=0.4
    ),
    "stock, slt": Way(None, voice="slt", share=0.4),
    "float32, slt": Way(voice="slt", share=0.4, as_stock=True),
    "int8, slt": Way("int8", voice="slt", share=0.4),
    "low_latency, slt": Way(stream=low_latency(), voice="slt", share=0.4),
    "stock, rms": Way(None, voice="rms", share=0.4),
    "float32, rms": Way(voice="rms", share=0.4, as_stock=True),
    "long text, the voice carried on": Way(voice="slt", share=0.4, long_text=True),
}


@dataclass(frozen=True)
class Utterances:
    """Utterances as they were heard, and for streams with all codebooks: the share of fine codes that are stock's."""

    heard: list[Heard]
    same_codes: list[float] | None


Said = dict[Kind, Utterances]


def with_coarse_history(stock: BarkModel, tokens: int) -> BarkModel:
    """A copy whose coarse windows begin with at most so many coarse tokens."""
    model = copy.deepcopy(stock)
    model.generation_config.coarse_acoustics_config["max_coarse_history"] = tokens
    return model


@dataclass
class Suite:
    """A checkpoint, the texts, and the folder of what has been measured of them."""

    checkpoint: Path
    said: dict[Kind, list[str]]
    seed: int
    folder: Path
    processor: Any = field(init=False)

    def __post_init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(self.checkpoint)

    @cached_property
    def stock(self) -> BarkModel:
        return BarkModel.from_pretrained(self.checkpoint).eval()

    def measure(self, name: str, way: Way) -> Said:
        """Return what was said, from the file of an earlier run where there is one."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            print(name, flush=True)
            said = {kind: self._say(name, way, kind) for kind in KINDS}
            file.write_text(json.dumps({kind: asdict(its) for kind, its in said.items()}))
        read = json.loads(file.read_text())
        return {
            kind: Utterances([Heard(**item) for item in its["heard"]], its["same_codes"]) for kind, its in read.items()
        }

    def _say(self, name: str, way: Way, kind: Kind) -> Utterances:
        # Whole batches: what a row draws depends on the others.
        said = self.said[kind][: max(1, round(way.share * len(self.said[kind]) / BATCH)) * BATCH]
        if way.long_text:
            return Utterances(listen(list(self._long(said, way.voice)), said, kind), None)
        codes: list[np.ndarray | None] = []
        audio = say(self._generate(way, codes), self.processor, said, way.voice, way.batch, self.seed + way.seed)
        if way.weights is None:
            np.savez(self.folder / f"{name}, {kind}.npz", *audio)
            np.savez(self.folder / f"{name}, {kind}, codes.npz", *codes)
        same_codes = None
        if way.draws_as_stock and codes[0] is not None:
            with np.load(self.folder / f"{way.baseline}, {kind}, codes.npz") as file:
                same_codes = [_same_codes(its, file[f"arr_{i}"]) for i, its in enumerate(codes)]
        heard = self._as_stock(name, way, kind, audio) if way.as_stock else listen(audio, said, kind)
        return Utterances(heard, same_codes)

    def _as_stock(self, name: str, way: Way, kind: Kind, audio: list[np.ndarray]) -> list[Heard]:
        """Return what was heard of stock, once the audio is checked to be stock's; audio that differs is heard anew."""
        said, heard = self.said[kind], self.measure(way.baseline, WAYS[way.baseline])[kind].heard[: len(audio)]
        with np.load(self.folder / f"{way.baseline}, {kind}.npz") as file:
            other = [i for i, wave in enumerate(audio) if not _same(wave, file[f"arr_{i}"])]
        print(f"{name}, {kind}: {len(audio) - len(other)} of {len(audio)} utterances are stock's")
        if len(other) > _NEAR_TIES * len(audio):
            raise SystemExit(f"{name}: expected stock's audio, got other for {[said[i] for i in other]}")
        for i, item in zip(other, listen([audio[i] for i in other], [said[i] for i in other], kind), strict=True):
            heard[i] = item
        return heard

    def _generate(self, way: Way, codes: list[np.ndarray | None]) -> Callable[..., Any]:
        """Return a function like a BarkModel's `generate` that also adds the fine codes of each row to `codes`."""
        model = self.stock
        if way.coarse_history is not None:
            model = with_coarse_history(model, way.coarse_history)
        if way.weights is not None:
            model = copy.deepcopy(model)
            options = {"weights": way.weights, "kv_cache_dtype": way.cache, "fix_stock_bugs": list(way.fix_stock_bugs)}
            model = accelerate_bark(model, strict=True, **dict.fromkeys(way.windows, True), **options)

        def generate(return_output_lengths: bool, **inputs: Any) -> tuple[Any, list[int]]:
            if way.stream is not None:
                inputs["streamer"] = AudioStreamer(model, **way.stream)
            audio, lengths, presets = generate_with_presets(model, **inputs)
            codes.extend(None if preset is None else preset["fine_prompt"] for preset in presets)
            return audio, lengths

        return generate

    def _long(self, said: list[str], voice: str | None) -> Iterator[np.ndarray]:
        """Every text a paragraph of one long text."""
        model = accelerate_bark(copy.deepcopy(self.stock), strict=True)
        spoken = long_form(model, self.processor, "\n\n".join(said), voice=voice, carry_voice=True, seed=self.seed)
        for chunk, text in zip(spoken, said, strict=True):
            assert chunk.text == text, (chunk.text, text)
            yield chunk.audio.numpy()


def summarise(said: Said, stock: Said) -> dict[str, Any]:
    """Word error rates with 95 % intervals, and what differs from stock on the same texts."""
    items = [item for kind in KINDS for item in said[kind].heard]
    same = [item for kind in KINDS for item in stock[kind].heard[: len(said[kind].heard)]]
    codes = [share for kind in KINDS for share in said[kind].same_codes or []]
    rates = {kind: _rate(said[kind].heard) for kind in KINDS}
    difference, low, high = rate_difference(_errors(items), _errors(same))
    return {
        "utterances": len(items),
        "words": sum(item.errors.words for item in items),
        "word_error_rate": {**rates, "all": _rate(items)},
        "above_stock": {"difference": difference, "interval": [low, high]},
        "ended": sum(item.ended for item in items) / len(items),
        "length_of_stock": sum(item.seconds for item in items) / sum(item.seconds for item in same),
        "same_fine_codes": sum(codes) / len(codes) if codes else None,
    }


def _errors(items: list[Heard]) -> list[Errors]:
    return [item.errors for item in items]


def _rate(items: list[Heard]) -> dict[str, Any]:
    rate, low, high = word_error_rate(_errors(items))
    return {"rate": rate, "interval": [low, high]}


def _same(wave: np.ndarray, expected: np.ndarray) -> bool:
    return wave.shape == expected.shape and np.abs(wave - expected).max(initial=0.0) <= _SAME_AUDIO


def _same_codes(codes: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of equal codes in the fine stage's codebooks; 0 where a near tie led to other coarse codes."""
    if codes.shape != expected.shape or not np.array_equal(codes[:2], expected[:2]):
        return 0.0
    return float((codes[2:] == expected[2:]).mean())


def work_folder(root: Path, checkpoint: Path, said: dict[Kind, list[str]], seed: int) -> Path:
    """Return the folder of this checkpoint, these texts and this seed."""
    digest = hashlib.sha256(json.dumps([said, seed, BATCH]).encode())
    for name in ("model.safetensors", "generation_config.json", "tokenizer.json"):
        digest.update((checkpoint / name).read_bytes())
    folder = root / digest.hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: the small Bark that comes with the package")
    parser.add_argument("--split", choices=["dev", "test"], default="test", help="dev for choosing, test for reporting")
    parser.add_argument("--share", type=float, default=1.0, help="of the texts")
    parser.add_argument("--only", nargs="+", metavar="WAY", choices=list(WAYS), help="these, and stock")
    parser.add_argument("--work", type=Path, default=Path("build/speech_quality"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    # Before the plot changes the clone.
    facts = {"machine": machine_facts(), "versions": versions(), "commit": commit()}
    split: Split = options.split
    counts = {kind: max(2, round(options.share * count)) for kind, count in COUNTS.items()}
    counts["phrases"] = min(counts["phrases"], held(split))
    said = {kind: texts(kind, split, count, SEED) for kind, count in counts.items()}
    checkpoint = options.checkpoint or Path(small_bark_path())
    suite = Suite(checkpoint, said, SEED, work_folder(options.work, checkpoint, said, SEED))
    chosen = {name: way for name, way in WAYS.items() if not options.only or name in options.only}
    chosen = {**{way.baseline: WAYS[way.baseline] for way in chosen.values()}, **chosen}
    said_by = {name: suite.measure(name, way) for name, way in chosen.items()}
    ways = {name: summarise(its, said_by[chosen[name].baseline]) for name, its in said_by.items()}
    print(table(ways))
    if options.plot:
        save_plot(options.plot, ways)
    if options.json:
        # Of whole batches, so maybe fewer than were asked for.
        heard = {kind: len(its.heard) for kind, its in next(iter(said_by.values())).items()}
        settings = {"split": split, "seed": SEED, "batch": BATCH, "texts": heard}
        options.json.write_text(json.dumps({**facts, **settings, "ways": ways}, indent=1) + "\n")
