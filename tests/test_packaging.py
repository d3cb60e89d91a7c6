"""What comes with a release, and where its build stops."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.version import Version

import bark_accel

ROOT = Path(__file__).parent.parent


def build_in(folder: Path, system: str) -> str:
    """What setup.py, in that folder, says last on such a system."""
    code = f"import platform, runpy; platform.system = lambda: {system!r}; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr.splitlines()[-1]


def test_a_build_on_windows_stops_with_a_sentence(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    assert re.fullmatch(
        r"bark_accel: expected Linux or macOS, got Windows; .*WSL2.*docs/windows\.md.*", build_in(tmp_path, "Windows")
    )


def test_a_checkout_whose_link_is_a_text_file_stops_the_build(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "patches").write_text("bark_accel/patches")
    assert "git checkout -- patches" in build_in(tmp_path, "Linux")


@pytest.mark.parametrize("link", [False, True])
def test_a_checkout_with_its_link_or_without_goes_on(tmp_path, link):
    """As far as the sources, which are not in that folder; an sdist has no link."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    if link:
        (tmp_path / "bark_accel/patches").mkdir(parents=True)
        (tmp_path / "patches").symlink_to("bark_accel/patches")
    assert "patches" not in build_in(tmp_path, "Linux")


def test_the_version_is_the_same_everywhere():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited[1] == bark_accel.__version__
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert Version(newest[1]) >= Version(bark_accel.__version__)


def test_bug_reports_ask_for_what_the_commands_print():
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text())
    asked = " ".join(field["attributes"]["label"] for field in form["body"])
    for command in re.findall(r"bark-accel (\w+)", asked):
        assert (ROOT / f"bark_accel/cli/{command}.py").is_file(), command
    assert "bark-accel info" in asked and "bark-accel check" in asked and "acceleration_report(model)" in asked


def test_every_folder_of_the_package_is_installed():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "bark_accel").rglob("__init__.py")}
    assert set(packages) == {".".join(folder.parts) for folder in folders}
