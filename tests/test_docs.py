"""The snippets of the documentation, run from top to bottom."""

from __future__ import annotations

import json
import re
import shlex
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from support.bark_models import SUNO, build
from support.stock_limits import skip_where_stock_fails
from transformers import BertTokenizer

from bark_accel.cli.app import app
from benchmarks.__main__ import COMMANDS as BENCHMARKS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [str(page.relative_to(ROOT)) for page in PAGES if "```python" in page.read_text()]
# What the README's reader is expected to have.
GIVEN = """
from threading import Thread
from transformers import AutoProcessor, BarkModel
inputs = AutoProcessor.from_pretrained("suno/bark-small")("Hello", voice_preset="v2/en_speaker_6")
played = []
play = played.append
"""


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory):
    """Where `suno/bark-small` is a folder: a tiny model that ends soon, a tokenizer of letters and two voices."""
    folder = tmp_path_factory.mktemp("docs")
    checkpoint = folder / "suno" / "bark-small"
    build(replace(SUNO, max_new_tokens=30)).save_pretrained(checkpoint)
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), *string.punctuation]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]))
    rng = np.random.default_rng(0)
    voices = {}
    for name in ("v2/en_speaker_6", "v2/en_speaker_9"):
        codes = rng.integers(0, 1024, (8, 120))
        voices[name] = {
            "semantic_prompt": rng.integers(0, 10_000, 80),
            "coarse_prompt": codes[:2].copy(),
            "fine_prompt": codes,
        }
    save_processor(BertTokenizer(str(folder / "vocab.txt")), voices, checkpoint)
    return folder


def save_processor(tokenizer, voices, folder):
    paths = {"repo_or_path": str(folder)}
    for name, parts in voices.items():
        paths[name] = {}
        for part, array in parts.items():
            file = Path("speaker_embeddings") / f"{name.replace('/', '_')}_{part}.npy"
            (folder / file).parent.mkdir(exist_ok=True)
            np.save(folder / file, array)
            paths[name][part] = str(file)
    tokenizer.save_pretrained(folder)
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(paths))


def snippets(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_snippets(document, working_folder, monkeypatch):
    skip_where_stock_fails("text-to-speech pipeline")
    monkeypatch.chdir(working_folder)
    torch.manual_seed(0)
    namespace: dict = {}
    exec(GIVEN, namespace)
    if document.startswith("docs/guide/"):
        exec(snippets("docs/guide.md")[0], namespace)
    for snippet in snippets(document):
        exec(compile(snippet, document, "exec"), namespace)


COMMANDS = [(p.name, command) for p in PAGES for command in re.findall(r"bark-accel ([a-z]+ [^`|\n]+)", p.read_text())]


@pytest.mark.parametrize("page, command", COMMANDS)
def test_commands_and_their_options_are_there(page, command):
    """Optional ones, in brackets, too."""
    name, *arguments = shlex.split(re.sub(r"[\[\]]", "", command), comments=True)
    arguments = arguments[: arguments.index("&&")] if "&&" in arguments else arguments
    parsed = typer.main.get_command(app).commands[name]
    parsed.make_parser(parsed.context_class(parsed)).parse_args(arguments)


def test_benchmarks_are_there():
    text = "".join(page.read_text() for page in [*PAGES, ROOT / "CONTRIBUTING.md", *ROOT.glob("benchmarks/**/*.md")])
    named = set(re.findall(r"python -m benchmarks ([a-z][a-z-]+)", text))
    assert named and named <= set(BENCHMARKS)


def anchors(path: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_found_from_the_readme():
    found, left = {ROOT / "README.md"}, [ROOT / "README.md"]
    while left:
        page = left.pop()
        links = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())}
        left += links - found
        found |= links
    assert not set(PAGES) - found


def test_the_readme_is_short():
    """What is longer belongs into the guide."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 125


def test_the_readme_has_the_measured_figures():
    """Its table is the record of the case that it speaks of, rounded."""
    records = json.loads((ROOT / "benchmarks/results/zen5_generation.json").read_text())
    (record,) = (r for r in records if (r["shape"], r["seconds"], r["preset"]) == ("bark-small", 5, False))
    rows = [line.split("|")[2:-1] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    table = [[cell.strip(" *x") for cell in row] for row in rows if len(row) == 6][1:]
    stages = ("semantic", "coarse", "fine", "codec", "total")
    expected = [[*(f"{its[stage]['median']:.1f}" for stage in stages), f"{its['times_faster']:.1f}"]
                for mode, its in record["modes"].items() if "fitting" not in mode]  # fmt: skip
    expected[0][-1] = ""
    assert table == expected


def test_what_is_said_of_8_bit_keys_and_values_holds_in_every_stage():
    record = json.loads((ROOT / "benchmarks/results/zen5_quality.json").read_text())
    page = (ROOT / "docs/guide/exactness.md").read_text()
    said = r"`kv_cache_dtype=\"int8\"` \| from scores within (\S+) % \(int8 weights: (\S+) %\); (\S+) % of"
    within, with_int8, same = map(float, re.search(said, page).groups())
    for stage in record["against_float32"].values():
        for way, its in stage.items():
            if way.endswith("int8 cache"):
                int8 = way.startswith("int8")
                assert 100 * its["relative_error"] <= (with_int8 if int8 else within)
                assert int8 or 100 * its["top_1_agreement"] >= same


def test_the_guide_has_the_measured_scores():
    """Those of smaller weights, of the stage and tokens that it names."""
    record = json.loads((ROOT / "benchmarks/results/zen5_quality.json").read_text())
    page = (ROOT / "docs/guide/exactness.md").read_text()
    for way, its in record["against_float32"]["semantic, 257 + 700"].items():
        weights, cache, _ = way.partition(" with int8 cache")
        name = f'"{weights}", "int8"' if cache else f'"{weights}"'
        divergence = f"{its['kl_nats']:.1e}".replace("e-0", "e-")
        error, same = f"{100 * its['relative_error']:.2g} %", f"{100 * its['top_1_agreement']:.1f} %"
        assert f"| `{name}` | {error} | {divergence} | {same} |" in page
