"""The thread that runs requests."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from contextlib import AbstractContextManager

import torch

from bark_accel.ops.idle_threads import end_idle_threads

from .errors import EngineBusy, EngineClosed
from .request import SpeechRequest
from .row import Row
from .scheduler import Scheduler

logger = logging.getLogger("bark_accel")


class Worker:
    """A thread with a scheduler, and what both sides share.

    It knows no engine, so that one that is dropped can be told from one that is used; when it ends, it gives up the
    scheduler with its caches.

    Parameters
    ----------
    max_rows, max_queued : int
        Requests that run and wait.
    place : context manager
        Where the thread computes.
    """

    def __init__(self, scheduler: Scheduler, max_rows: int, max_queued: int, place: AbstractContextManager):
        self._sizes = max_rows, max_queued
        self._changed = threading.Condition()
        self._arrived: list[Row] = []
        self._unfinished: set[SpeechRequest] = set()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=self._run, args=(scheduler, place), name="bark_accel.engine", daemon=True
        )
        _live.add(self)
        end_idle_threads()
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """Number of requests that are not done."""
        with self._changed:
            # Some may be done and not forgotten yet: who waits for a request is woken first.
            return sum(not request.done() for request in self._unfinished)

    @property
    def closed(self) -> bool:
        """Tell whether no more rows are taken: it was closed, or its thread has failed."""
        return self._closed

    def check_open(self) -> None:
        """Raise unless there is room for one more."""
        if self._process != os.getpid():
            raise RuntimeError("BarkEngine: expected the process that made it, got a child of it, which has no thread")
        with self._changed:
            if self._closed:
                raise EngineClosed("BarkEngine: expected an open engine, got one that was closed")
            rows, queued = self._sizes
            if self.unfinished >= rows + queued:
                most = f"{rows} running (max_rows) and {queued} waiting (max_queued)"
                raise EngineBusy(f"BarkEngine: expected at most {most} requests, got one more")

    def add(self, row: Row) -> None:
        """Take a row; raises as `check_open` does."""
        end_idle_threads()  # of the caller, who has prepared the row
        with self._changed:
            self.check_open()
            self._arrived.append(row)
            self._unfinished.add(row.request)
            self._changed.notify_all()
        row.request.add_done_callback(self._forget_done)

    def _forget_done(self) -> None:
        """Keep no audio that nobody else keeps, also of a request whose `add` was interrupted."""
        if self._process != os.getpid():
            return  # a lock may be one that nobody here will open
        with self._changed:
            self._unfinished = {request for request in self._unfinished if not request.done()}

    def close(self, *, drain: bool) -> None:
        """Take no more rows, finish or cancel those that are there, and wait for the end of the thread.

        Who is interrupted while it drains cancels the rest.
        """
        self.leave(drain=drain)
        if self._process != os.getpid() or threading.current_thread() is self._thread:
            return
        end_idle_threads()
        try:
            self._thread.join()
        except BaseException:
            self.leave(drain=False)
            self._thread.join()
            raise

    def leave(self, *, drain: bool) -> None:
        """Do as `close`, but wait for nothing: safe wherever the garbage collector runs."""
        if self._process != os.getpid():
            return  # a lock may be one that nobody here will open
        with self._changed:
            self._closed = True
            left = [] if drain else list(self._unfinished)
            self._changed.notify_all()
        for request in left:
            request.end(EngineClosed("expected audio, got an engine that was closed before it was done"))

    # The thread.

    def _run(self, scheduler: Scheduler, place: AbstractContextManager) -> None:
        try:
            with torch.no_grad(), place:
                while self._next_turn(scheduler):
                    scheduler.turn()
        except BaseException as error:  # a bug: nobody may wait for ever
            logger.exception("bark_accel: the engine's thread failed")
            with self._changed:
                self._closed = True
                left = list(self._unfinished)
            for request in left:
                request.end(error)
        finally:
            _live.discard(self)

    def _next_turn(self, scheduler: Scheduler) -> bool:
        """Wait for something to do; False where nothing will come."""
        if not (self._arrived or scheduler.busy or self._closed):
            end_idle_threads()  # others compute meanwhile; they may want the lock, too
        with self._changed:
            while not (self._arrived or scheduler.busy or self._closed):
                self._changed.wait()
            for row in self._arrived:
                scheduler.add(row)
            self._arrived.clear()
            return scheduler.busy


# Workers whose thread has not ended.
_live: set[Worker] = set()


@atexit.register
def _close_all() -> None:
    for worker in list(_live):
        worker.close(drain=False)
