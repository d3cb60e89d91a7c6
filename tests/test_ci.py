"""The whole check says what it could not check."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parent.parent / ".ci"
BASH = shutil.which("bash")


def stub(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{BASH}\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path):
    """A folder in which `make` says SKIPPED as it is told, and Python only copies itself, as an environment."""
    shutil.copytree(CI, tmp_path / ".ci")
    copy = 'case $2 in *make_environment*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; esac'
    stub(tmp_path / ".venv/bin/python", f"{copy}; cat > /dev/null")
    return tmp_path


def check(clone, make):
    stub(clone / "bin/make", make)
    environment = {"PATH": f"{clone / 'bin'}:/usr/bin:/bin"}
    return subprocess.run(
        [BASH, ".ci/run"],
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_was_skipped_is_said_last(clone):
    say = 'case $1 in test) echo "9 passed";; cuda-check) echo "SKIPPED, CUDA kernels NOT compiled" >&2;; esac'
    done = check(clone, say)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "== passed, but NOT all of it was checked here:\nSKIPPED, CUDA kernels NOT compiled\n"
    ), done.stdout
    assert "9 passed" in done.stdout and "all passed" not in done.stdout


def test_nothing_skipped(clone):
    done = check(clone, "echo 9 passed")
    assert done.returncode == 0 and done.stdout.endswith("== all passed\n"), done.stdout + done.stderr


@pytest.mark.parametrize("step", ["test", "matrix", "lint", "cuda-check"])
def test_a_step_that_fails(clone, step):
    done = check(clone, f"[ $1 != {step} ]")
    assert done.returncode != 0 and "passed" not in done.stdout


def test_without_nvcc_the_check_of_cuda_says_so(tmp_path):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    environment = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(
        [BASH, CI / "cuda_check", "python"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr.startswith("SKIPPED, CUDA kernels NOT compiled")
