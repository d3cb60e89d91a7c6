from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec

import pytest
import torch
import transformers
from support.bark_models import SMALL, SUNO, build, speaking
from support.met_ties import pytest_terminal_summary, report_ties  # noqa: F401

if find_spec("hypothesis") is not None:  # a machine with a GPU may lack it: tests/gpu does without
    import hypothesis

    hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, print_blob=True)
    hypothesis.settings.load_profile("tests")
transformers.logging.set_verbosity_error()
# Tiny models gain nothing from threads; tests/ops and the bark-small test run with several.
torch.set_num_threads(1)
logging.getLogger("bark_accel").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items):
    """Refuse names that differ from process to process: workers could not share the tests."""
    named_by_address = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named_by_address:
        raise pytest.UsageError(f"expected tests with names of their own, got addresses in {named_by_address}")


@pytest.fixture(autouse=True)
def quiet_and_fresh():
    """Transformers' own deprecation warnings are not ours to test."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        yield


@pytest.fixture(scope="session")
def small_model():
    """Every constant differs from suno's; generates up to 90 semantic tokens. Never patch it: copy it."""
    return build(SMALL)


@pytest.fixture(scope="session")
def suno_model():
    """suno's constants, two layers of width 32. Never patch it: copy it."""
    return build(SUNO)


@pytest.fixture(scope="session")
def speaking_model():
    """The one that comes with the package: trained, 25 semantic tokens and 50 frames of 6 codebooks a second."""
    return speaking()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a saved tiny model and no tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bark")
    build(SUNO).save_pretrained(folder)
    return folder


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
