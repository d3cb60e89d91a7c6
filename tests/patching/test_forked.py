"""Children of a process that has generated on several threads: they finish, on one thread and with one warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# Each child prints one line. SIGALRM ends one that hangs.
PROGRAM = """
import json, logging, multiprocessing, signal, threading
import torch
from support.bark_models import SMALL, build, texts
from bark_accel import accelerate_bark, free_memory, stream

torch.set_num_threads(2)
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("bark_accel").addHandler(handler)
lstm, large = torch.nn.LSTM(128, 128), torch.randn(500, 500)
same, int8, plain = (build(SMALL, width=256, heads=4) for _ in range(3))
accelerate_bark(same)
accelerate_bark(int8, weights="int8")
accelerate_bark(plain, backend="torch")

def generate(model, **options):
    torch.manual_seed(0)
    audio = model.generate(**texts(SMALL, [6]), do_sample=True, semantic_max_new_tokens=20, **options)
    with torch.no_grad():  # ops of torch's own that are large enough for two threads
        (large @ large).exp().sum(), lstm(large[None, :, :128]), torch.nn.functional.softmax(large.sort().values, 1)
        torch.nn.functional.scaled_dot_product_attention(*large.view(1, 1, 500, 500).expand(3, 1, 4, 500, 500))
    return audio

def in_a_thread():
    thread = threading.Thread(target=check, args=(same,))
    thread.start()
    thread.join()

def check(model, **options):
    got, known = generate(model, **options), expected[model, bool(options)]
    equal = got.shape == known.shape and bool(((got - known).abs() < 1e-5).all())
    done.update(threads=torch.get_num_threads(), equal=equal)

def streamed():
    assert list(stream(same, **texts(SMALL, [6]), semantic_max_new_tokens=20))
    check(same)

def listened():
    for chunk in stream(same, **texts(SMALL, [6]), semantic_max_new_tokens=20):
        large.exp().sum()
    check(same)

cases = {
    "native": lambda: check(same),
    "int8": lambda: check(int8),
    "torch": lambda: check(plain),
    "transformers": lambda: check(same, no_repeat_ngram_size=3),
    "accelerated in the child": lambda: (accelerate_bark(same), check(same)),
    "streamed": streamed,
    "ops of the listener": listened,
    "memory freed first": lambda: (free_memory(same), check(same)),
    "a thread of the child": in_a_thread,
}
expected = {(model, False): generate(model) for model in (same, int8, plain)}
expected[same, True] = generate(same, no_repeat_ngram_size=3)
warnings.clear()
for name, case in cases.items():
    done = {"name": name}

    def work():
        signal.alarm(300)
        case()
        print(json.dumps({**done, "warnings": warnings}), flush=True)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    if child.exitcode:
        print(json.dumps({**done, "exit": child.exitcode}), flush=True)
"""
ON_ONE_THREAD = ["native", "int8", "torch", "transformers", "accelerated in the child", "streamed"]
ON_ONE_THREAD += ["ops of the listener", "memory freed first"]


@pytest.fixture(scope="module")
def children() -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", ON_ONE_THREAD)
def test_a_child_finishes_on_one_thread_and_says_so(children: dict[str, dict[str, Any]], name: str) -> None:
    child = children[name]
    assert child["threads"] == 1 and child["equal"]
    about_threads = [warning for warning in child["warnings"] if "forked" in warning]
    assert len(about_threads) == 1 and "generating on one thread" in about_threads[0]


def test_a_thread_of_the_child_has_all_threads(children: dict[str, dict[str, Any]]) -> None:
    child = children["a thread of the child"]
    assert child["threads"] == 2 and child["equal"] and child["warnings"] == []
