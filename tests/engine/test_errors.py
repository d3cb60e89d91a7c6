"""Errors as an engine gives them out."""

from __future__ import annotations

import asyncio

import pytest
from support.engine_requests import SHORT
from support.waiting import LIMIT_S

from bark_accel.engine.engine import make_row
from bark_accel.engine.errors import without_frames
from bark_accel.patches.engine import ModelSource


class _Odd(Exception):
    """Cannot be made from its `args`."""

    def __init__(self, number: int, text: str):
        super().__init__(f"{number}: {text}")


class _Prefixed(Exception):
    """Another one is made from its `args`."""

    def __init__(self, text: str):
        super().__init__(f"expected {text}")


def _raised(error: BaseException, cause: BaseException | None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


ERRORS = {
    "equal": lambda: ValueError("one", 2),
    "odd": lambda: _Odd(3, "odd"),
    "prefixed": lambda: _Prefixed("prefix"),
    "interrupt": KeyboardInterrupt,
}


@pytest.mark.parametrize("linked", ["cause", "context"])
@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_given_out_without_frames(kind, linked):
    error, first = ERRORS[kind](), KeyError("first")
    args = error.args
    _raised(error, first if linked == "cause" else None)
    if linked == "context":
        error.__context__, error.__suppress_context__ = first, False
    own = without_frames(error)
    assert type(own) is type(error) and own.args == args
    assert own.__traceback__ is own.__context__ is None
    assert "in _raised" in str(own.__cause__) and "first" in str(own.__cause__)
    cause = without_frames(own).__cause__
    assert cause is own.__cause__, "text of before is kept"


@pytest.mark.parametrize("error", [StopIteration("a"), StopAsyncIteration("a")])
def test_the_end_of_an_iterator_is_an_error_for_every_listener(fast, error):
    request = make_row(ModelSource(fast), SHORT, policy="preview").request

    async def wait():
        return await request

    async def main():
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        request.end(error)
        await asyncio.wait_for(waiting, LIMIT_S)

    with pytest.raises(RuntimeError, match=r"expected audio, got Stop.*Iteration\('a'\)"):
        asyncio.run(main())
    for listen in (request.result, lambda: list(request)):
        with pytest.raises(RuntimeError, match="expected audio"):
            listen()
