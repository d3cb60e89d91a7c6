"""Requests in a child of the process whose engine generates them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import torch
from support.engine_requests import LONG, SHORT
from support.waiting import LIMIT_S


def collect(request) -> list:
    async def chunks():
        return [chunk async for chunk in request]

    return asyncio.run(chunks())


async def waited(request) -> torch.Tensor:
    return await request


IN_A_CHILD = {
    "submit": lambda engine, request: engine.submit(**SHORT),
    "result": lambda engine, request: request.result(),
    "iterate": lambda engine, request: list(request),
    "await": lambda engine, request: asyncio.run(waited(request)),
    "async for": lambda engine, request: collect(request),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("act", IN_A_CHILD)
def test_a_child_says_that_the_thread_is_its_parents(engine, act, hold):
    with hold(), engine.submit(**{**LONG, "semantic_max_new_tokens": 85}, policy="exact") as request:
        child = os.fork()
        if child == 0:
            signal.alarm(round(LIMIT_S))
            try:
                IN_A_CHILD[act](engine, request)
            except RuntimeError as error:
                os._exit(0 if "expected the process that made" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
