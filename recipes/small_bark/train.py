"""
Make the small Bark, from nothing to a checkpoint that speaks: `python -m recipes.small_bark.train`.

Stages run in turn, each is skipped when its result is there, and a killed training goes on from its last minute:

    data      flite speaks the corpus                    tokens    k-means: semantic tokens, codes
    semantic  coarse  fine  codec                        the four models, each on its own
    tune      the decoder again, on codes of the fine model
    assemble  checkpoint, tokenizer, voices              evaluate  figures, model card
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import assemble, card, codec, evaluate, gpt, loop, tokens
from .data import Corpus, make_more
from .data import make as make_corpus

# For some hours on two cores, with the codec beside the transformers.
PLANS = {
    "semantic": loop.Plan(steps=26000, rate=2e-3, weight_decay=0.05),
    "coarse": loop.Plan(steps=2600, rate=2e-3, weight_decay=0.02),
    "fine": loop.Plan(steps=2400, rate=2e-3, weight_decay=0.02),
    "codec": loop.Plan(steps=6000, rate=2e-3),
    "tune": loop.Plan(steps=2600, rate=5e-4),
}
# Of sampling; chosen on the development split. The fine stage takes the likeliest code at 1.
TEMPERATURES = {"semantic": 0.4, "coarse": 0.5, "fine": 1.0}

# Of the texts of the card; earlier weights were measured with 1.
TEST_SEED = 2


@dataclass(frozen=True)
class Run:
    """A folder of results, and the seed of everything that is drawn."""

    folder: Path
    seed: int

    def path(self, name: str) -> Path:
        """Return the path of a result."""
        return self.folder / name

    def corpus(self) -> Corpus:
        """Load the result of the stage `data`."""
        return Corpus.load(self.path("data.npz"))

    def tokens(self) -> tokens.Tokens:
        """Load the result of the stage `tokens`."""
        return tokens.Tokens.load(self.path("tokens.npz"))


def data(run: Run) -> None:
    """Speech by flite."""
    if not run.path("data.npz").exists():
        make_corpus(run.seed).save(run.path("data.npz"))
    if not run.path("more.npz").exists():
        make_more(run.seed, run.corpus()).save(run.path("more.npz"))


def tokenise(run: Run) -> None:
    """Semantic tokens and codes."""
    if not run.path("tokens.npz").exists():
        tokens.make(run.corpus(), run.seed).save(run.path("tokens.npz"))


def transformer(stage: str) -> Callable[[Run], None]:
    """The training of a transformer."""

    def train(run: Run) -> None:
        path = run.path(f"{stage}.pt")
        if not loop.finished(path, PLANS[stage]):
            examples = gpt.Examples(run.corpus(), run.tokens(), "train")
            if stage == "semantic":
                more = Corpus.load(run.path("more.npz"))
                spoken = tokens.semantic_alone(more, run.tokens().centres)
                examples.add(more, spoken, [np.zeros((tokens.CODEBOOKS, 0))] * len(spoken), "train")
            gpt.train(stage, examples, PLANS[stage], path, run.seed)

    return train


def decoder(run: Run) -> None:
    """The training of the codec's decoder."""
    path = run.path("codec.pt")
    if not loop.finished(path, PLANS["codec"]):
        codes, audio = training_pairs(run)
        codec.train(codec.build(run.tokens().codebooks, run.seed), codes, audio, PLANS["codec"], path, run.seed)


def tune(run: Run) -> None:
    """The decoder again, on the codes that the fine model gives: what it will be asked to speak."""
    path = run.path("tune.pt")
    if loop.finished(path, PLANS["tune"]):
        return
    codes, audio = training_pairs(run)
    cache = run.path("predicted.npz")
    if not cache.exists():
        predicted = gpt.predict_fine(trained(run, "fine"), codes)
        loop.save_arrays(cache, codes=np.concatenate(predicted, axis=1))
    ends = np.cumsum([code.shape[1] for code in codes])[:-1]
    with np.load(cache) as file:
        predicted = np.split(file["codes"], ends, axis=1)
    model = codec.build(run.tokens().codebooks, run.seed)
    codec.train(model, predicted, audio, PLANS["tune"], path, run.seed, run.path("codec.pt"))


def training_pairs(run: Run) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Codes and audio of the training split."""
    corpus, spoken = run.corpus(), run.tokens()
    train = [i for i, split in enumerate(corpus.splits) if split == "train"]
    return [spoken.codes[i] for i in train], [corpus.audio[i] for i in train]


def trained(run: Run, stage: str) -> Any:
    """A transformer with its trained weights."""
    model = gpt.build(stage, run.seed)
    loop.load(model, run.path(f"{stage}.pt"))
    return model


def finish(run: Run) -> None:
    """The checkpoint, in run.folder / "checkpoint"."""
    spoken = run.tokens()
    sound = codec.build(spoken.codebooks, run.seed)
    loop.load(sound.decoder, run.path("tune.pt"))
    bark = assemble.model({stage: trained(run, stage) for stage in ("semantic", "coarse", "fine")}, sound)
    assemble.save(bark, run.corpus(), spoken, TEMPERATURES, run.path("checkpoint"))


def measure(run: Run) -> None:
    """Figures of the test split, and the model card with them."""
    checkpoint = run.path("checkpoint")
    results = evaluate.evaluate(checkpoint, "test", count=100, batch=50, seed=TEST_SEED)
    run.path("test.json").write_text(json.dumps(results, indent=2) + "\n")
    (checkpoint / "README.md").write_text(card.write(checkpoint, results))


STAGES: dict[str, Callable[[Run], None]] = {
    "data": data,
    "tokens": tokenise,
    "codec": decoder,
    "semantic": transformer("semantic"),
    "coarse": transformer("coarse"),
    "fine": transformer("fine"),
    "tune": tune,
    "assemble": finish,
    "evaluate": measure,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; default: all, in turn")
    parser.add_argument("--folder", type=Path, default=Path("build/small_bark"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of torch; stages run side by side want one each")
    arguments = parser.parse_args()
    unknown = set(arguments.stages) - set(STAGES)
    if unknown:
        parser.error(f"expected stages of {', '.join(STAGES)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for stage in arguments.stages or STAGES:
        print(f"== {stage}", flush=True)
        STAGES[stage](Run(arguments.folder, arguments.seed))


if __name__ == "__main__":
    main()
