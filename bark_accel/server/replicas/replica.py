"""A replica: one engine, pinned to its cores, at the end of a socket."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import NoReturn

import torch

from bark_accel import BarkEngine, EngineClosed, SpeechRequest
from bark_accel.bench.models import LoadedBark

from ..loading import greet
from .messages import Cancel, Ended, Failure, Order, Ready, Samples, Submit, receive, send

logger = logging.getLogger("bark_accel.server")


def serve(loaded: LoadedBark, order: Order, index: int, connection: Connection) -> None:
    """Answer requests until the other end is closed, which ends the process.

    Everything runs in a thread that is started after the fork: see `bark_accel._forked`.

    Parameters
    ----------
    loaded : LoadedBark
        Accelerated, before the fork.
    order : Order
    index : int
        Which of its sets of CPUs to use.
    connection : Connection
        To the front.
    """
    os.sched_setaffinity(0, order.cpus[index])
    thread = threading.Thread(target=_run, args=(loaded, order, connection), name="bark_accel.replica")
    thread.start()
    thread.join()


def _run(loaded: LoadedBark, order: Order, connection: Connection) -> None:
    try:
        torch.set_num_threads(order.threads)
        engine = BarkEngine(loaded.model, max_rows=order.max_rows, max_queued=order.max_rows)
        greet(engine, loaded)
        _Replica(engine, connection, order.max_rows).run()
    except BaseException:
        logger.exception("bark_accel: a replica failed")
        os._exit(1)


class _Replica:
    def __init__(self, engine: BarkEngine, connection: Connection, max_rows: int):
        self._engine, self._connection = engine, connection
        self._requests: dict[int, SpeechRequest] = {}
        self._sending = threading.Lock()
        # The front gives out as many requests as there are rows.
        self._forwarding = ThreadPoolExecutor(max_rows)

    def run(self) -> None:
        """Do what comes; raises `EngineClosed` where the engine has failed."""
        self._send(Ready(self._engine.cache_bytes))
        while True:
            try:
                message = receive(self._connection)
            except (EOFError, OSError):
                _leave()
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Cancel) and (request := self._requests.get(message.number)) is not None:
                request.cancel()

    def _submit(self, message: Submit) -> None:
        after = None if message.after is None else self._requests.get(message.after)
        try:
            request = self._engine.submit(**message.arguments, after=after)
        except EngineClosed:
            raise
        except Exception as error:
            self._send(Ended(message.number, failure=Failure.of(error)))
            return
        if after is None:
            request.is_heard_in(message.heard_in_s)
        self._requests[message.number] = request
        self._forwarding.submit(self._forward, message.number, request)

    def _forward(self, number: int, request: SpeechRequest) -> None:
        try:
            for samples in request:
                self._send(Samples(number, samples.numpy()))
            last = Ended(number, request.preset)
        except Exception as error:
            last = Ended(number, failure=Failure.of(error))
        del self._requests[number]
        self._send(last)

    def _send(self, message: object) -> None:
        """Send in turn; where the front does not read, nothing but its own requests waits."""
        try:
            with self._sending:
                send(self._connection, message)
        except OSError:
            _leave()


def _leave() -> NoReturn:
    """End the process: the server has ended, or has closed this socket."""
    os._exit(0)
