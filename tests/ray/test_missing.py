"""A machine without Ray."""

from __future__ import annotations

import sys

import pytest
from support.command import run

MESSAGE = "needs Ray: pip install 'bark_accel[ray]'"


@pytest.fixture(params=["ray", "pyarrow"])
def without(request, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bark_accel.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, request.param, None)


def test_the_package_names_its_extra(without):
    with pytest.raises(ImportError) as raised:
        import bark_accel.ray  # noqa: F401
    assert MESSAGE in str(raised.value)


def test_the_command_names_it_before_any_work(without, tmp_path):
    (tmp_path / "texts.csv").write_text("text\none\n")
    done = run("corpus", str(tmp_path / "texts.csv"), str(tmp_path / "out"))
    assert done.exit_code == 2 and MESSAGE in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()
