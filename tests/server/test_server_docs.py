"""The server's document and the files that deploy it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from bark_accel.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/server.md").read_text()
DEPLOY = sorted((ROOT / "deploy").iterdir())


def options() -> set[str]:
    serve = typer.main.get_command(app).commands["serve"]
    return {name for parameter in serve.params for name in parameter.opts}


@pytest.mark.parametrize("file", [ROOT / "docs/server.md", *(p for p in DEPLOY if p.name != "Dockerfile")], ids=str)
def test_every_option_is_there(file):
    lines = [line for line in file.read_text().splitlines() if "docker" not in line]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines))) - {"--help", "--no-build-isolation"}
    assert named and not named - options()


def test_the_image_starts_the_server_with_files_that_are_there():
    text = (ROOT / "deploy/Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY") and "--from" not in line]
    assert all((ROOT / name).exists() for names in copied for name in names)
    start = re.search(r"^ENTRYPOINT \[(.*)\]", text, re.MULTILINE)[1].replace(",", " ")
    command, *rest = shlex.split(start)
    assert (command, rest[0]) == ("bark-accel", "serve") and set(rest[1::2]) <= options()


def test_compose_builds_that_image():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    build = services["bark"]["build"]
    assert (ROOT / "deploy" / build["context"] / build["dockerfile"]).is_file()
    assert services["webui"]["environment"]["AUDIO_TTS_OPENAI_API_BASE_URL"] == "http://bark:8000/v1"


def test_the_python_of_the_document(server):
    (snippet,) = re.findall(r"^```py\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    played: list[bytes] = []
    exec(snippet.replace("http://localhost:8000", server.url), {"play": played.append})
    assert len(b"".join(played)) > 24_000


def test_curl_of_the_document(server, tmp_path):
    curl = re.search(r"^curl localhost:8000.*?-o hello.mp3$", DOCUMENT, re.MULTILINE | re.DOTALL)[0].replace("\\\n", "")
    try:
        subprocess.run(shlex.split(curl.replace("localhost:8000", server.url)), cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    assert (tmp_path / "hello.mp3").read_bytes()[:1] == b"\xff"
