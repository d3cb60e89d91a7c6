"""An engine whose rows are spread over processes: one waiting line, and a new process for one that ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from bark_accel import EngineClosed
from bark_accel.hf.configs import GenerationConfigs

from .keeper_process import KeeperProcess, Link
from .messages import Cancel, Ended, Order, Ready, Samples, Submit, receive, send
from .request import RemoteRequest, RemoteSound, ReplicaDied

logger = logging.getLogger("bark_accel.server")

# Between two looks whether a replica hangs.
_LOOK_S = 1.0
# A replica hangs that has not spoken so long after its fork, or not let a request go so long after it was cancelled.
_START_S = 120.0
_HANGS_S = 30.0
# A replica that dies younger than this is started anew after a pause, which doubles each time up to the longest.
_YOUNG_S = 60.0
_LONGEST_PAUSE_S = 30.0


class Replica:
    """The place of one process after the other.

    Attributes
    ----------
    index : int
    deaths : int
        Processes that have ended by themselves.
    link : Link, optional
        The process that there is now.
    ready : bool
        It has spoken, and takes requests.
    keeper : KeeperProcess, optional
        Whose weights it shares.
    requests : dict
        Those that it has, by number.
    """

    def __init__(self, index: int):
        self.index, self.deaths, self.ready = index, 0, False
        self.link: Link | None = None
        self.retired = False
        """It was told to end, to be started anew."""
        self.keeper: KeeperProcess | None = None
        self.requests: dict[int, RemoteRequest] = {}
        self.born_at = time.monotonic()
        self.outbox: SimpleQueue[Submit | Cancel | None] = SimpleQueue()

    def reset(self, link: Link | None) -> list[RemoteRequest]:
        """Have another process, or none; returns the requests of the last one."""
        left = list(self.requests.values())
        self.retired = False
        self.link, self.ready, self.requests, self.born_at = link, False, {}, time.monotonic()
        self.outbox = SimpleQueue()
        return left

    @property
    def nbytes(self) -> int:
        """Bytes of its memory, with its part of what it shares; 0 where there is no process."""
        link = self.link
        return 0 if link is None else proportional_bytes(link.pid)


class ReplicatedEngine:
    """Stands where a `BarkEngine` stands, and gives each request to the replica that has the fewest.

    Requests wait here, and not at a replica, as long as no row is free. Those of a replica that ends get `ReplicaDied`.

    Parameters
    ----------
    order : Order

    Raises
    ------
    OSError, ValueError
        The model cannot be loaded, or a replica ended before it had spoken.
    """

    def __init__(self, order: Order):
        self._order = order
        self._lock = threading.Lock()
        self._waiting: deque[RemoteRequest] = deque()
        self._numbers = count()
        self._closing = threading.Event()
        self.replicas = [Replica(index) for index in range(len(order.cpus))]
        self._changed = threading.Condition(self._lock)
        self._keeping = threading.Lock()
        self._keeper = KeeperProcess(order)
        try:
            loaded = self._keeper.loaded()
            self._source = RemoteSound(GenerationConfigs.of(loaded.outline.model).sample_rate)
        except BaseException:
            self._keeper.end()
            raise
        self.outline, self.weight_bytes, self.cache_bytes = loaded.outline, loaded.weight_bytes, 0
        self._threads = [
            threading.Thread(target=self._keep_running, args=(replica,), name="bark_accel.replica", daemon=True)
            for replica in self.replicas
        ]
        for thread in self._threads:
            thread.start()
        self._wait_for_all()

    @property
    def requests(self) -> int:
        """Number of requests that wait, or whose rows are not free yet."""
        with self._lock:
            return len(self._waiting) + sum(len(replica.requests) for replica in self.replicas)

    def submit(
        self, *, input_ids: Tensor, seed: int, after: RemoteRequest | None = None, **arguments: Any
    ) -> RemoteRequest:
        """Queue one utterance; see `BarkEngine.submit`.

        Raises
        ------
        EngineClosed
            After `close`.
        """
        given = {"input_ids": input_ids, "seed": seed, **arguments}
        request = RemoteRequest(self._source, given, self._left, after)
        with self._lock:
            if self._closing.is_set():
                raise _closed()
            self._waiting.append(request)
            self._give_out()
        return request

    def close(self) -> None:
        """End the requests that are there with `EngineClosed`, and all processes."""
        with self._lock:
            self._closing.set()
            waiting, links = list(self._waiting), [replica.link for replica in self.replicas]
            self._waiting.clear()
        for request in waiting:
            request.end(_closed())
        for link in filter(None, links):
            link.hang_up()
        self._keeper.end()
        for thread in self._threads:
            thread.join()

    # With the lock held.

    def _give_out(self) -> None:
        """Give requests that wait to the least loaded replicas, as long as rows are free."""
        while self._waiting:
            able = [r for r in self.replicas if r.ready and not r.retired and not self._retires(r)]
            free = [r for r in able if len(r.requests) < self._order.max_rows]
            if not free:
                return
            replica, request = min(free, key=lambda r: len(r.requests)), self._waiting.popleft()
            number = next(self._numbers)
            replica.requests[number] = request
            replica.outbox.put(request.message(number))

    def _retires(self, replica: Replica) -> bool:
        """Tell whether it has weights of a keeper that is gone, while another replica has those of the next one."""
        heirs = any(r.ready and r.keeper is self._keeper for r in self.replicas)
        return heirs and replica.ready and replica.keeper is not self._keeper

    def _let_go(self) -> None:
        """End those that retire and have said what they were given: their weights are a second copy in memory."""
        for replica in self.replicas:
            if self._retires(replica) and not replica.requests and replica.link is not None:
                replica.retired = True
                replica.link.hang_up()

    # From any thread.

    def _left(self, request: RemoteRequest) -> None:
        """Forget a request that was cancelled, or tell its replica."""
        with self._lock:
            with suppress(ValueError):
                self._waiting.remove(request)
            for replica in self.replicas:
                for number, other in replica.requests.items():
                    if other is request:
                        replica.outbox.put(Cancel(number))

    def _wait_for_all(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: all(r.ready for r in self.replicas) or any(r.deaths for r in self.replicas))
            died = any(replica.deaths for replica in self.replicas)
        if died:
            self.close()
            raise OSError(f"a replica of {self._order.spec.name} ended before it had spoken")

    # The thread of a replica.

    def _keep_running(self, replica: Replica) -> None:
        """Start a process, attend to it until it ends, and start another one."""
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            born_at = time.monotonic()
            try:
                self._attend(replica, *self._fork(replica.index))
            except Exception as error:
                if not self._closing.is_set():
                    logger.error("%s: replica %d: %s", self._order.spec.name, replica.index, error)
            self._lose(replica)
            pause_s = 0.0 if time.monotonic() - born_at > _YOUNG_S else min(_LONGEST_PAUSE_S, 2 * pause_s + 0.5)

    def _fork(self, index: int) -> tuple[Link, KeeperProcess]:
        with self._keeping:
            if self._keeper.gone:
                with self._lock:
                    if self._closing.is_set():
                        raise _closed()
                    self._keeper = KeeperProcess(self._order)
                self._keeper.loaded()
            return self._keeper.fork(index), self._keeper

    def _attend(self, replica: Replica, link: Link, keeper: KeeperProcess) -> None:
        with self._lock:
            replica.reset(link)
            replica.keeper = keeper
            if self._closing.is_set():
                link.hang_up()
        sender = threading.Thread(target=_send_all, args=(link, replica.outbox), name="bark_accel.replica.send")
        sender.start()
        try:
            while True:
                if link.connection.poll(_LOOK_S):
                    self._take(replica, receive(link.connection))
                elif self._hangs(replica):
                    logger.error("%s: replica %d hangs", self._order.spec.name, replica.index)
                    os.kill(link.pid, signal.SIGKILL)
        except (EOFError, OSError):
            pass
        finally:
            with self._lock:
                replica.ready = False
                replica.outbox.put(None)
            link.hang_up()
            sender.join()
            link.connection.close()

    def _hangs(self, replica: Replica) -> bool:
        """Tell whether it has not done what it should have done long ago."""
        now = time.monotonic()
        with self._lock:
            left = [request.left_at for request in replica.requests.values() if request.left_at is not None]
            return now - min(left, default=now) > _HANGS_S if replica.ready else now - replica.born_at > _START_S

    def _take(self, replica: Replica, message: Ready | Samples | Ended) -> None:
        if isinstance(message, Samples):
            replica.requests[message.number].take(message.samples)
            return
        with self._changed:
            if isinstance(message, Ready):
                replica.ready = True
                self.cache_bytes = message.cache_bytes * len(self.replicas)
            else:
                request = replica.requests.pop(message.number)
            self._let_go()
            self._give_out()
            self._changed.notify_all()
        if isinstance(message, Ended):
            if message.failure is None:
                request.finish(message.preset)
            else:
                request.end(message.failure.restored())

    def _lose(self, replica: Replica) -> None:
        """Count a process that has ended, and tell its requests."""
        with self._changed:
            closing, retired = self._closing.is_set(), replica.retired
            replica.deaths += not (closing or retired)
            pid = replica.link.pid if replica.link else None
            lost = replica.reset(None)
            self._changed.notify_all()
        if retired:
            logger.info("%s: replica %d is started anew, to share weights", self._order.spec.name, replica.index)
        elif not closing:
            logger.error(
                "%s: replica %d (process %s) ended with %d requests; another one is started",
                *(self._order.spec.name, replica.index, pid, len(lost)),
            )
        for request in lost:
            request.end(_closed() if closing else ReplicaDied("expected audio, got a replica that ended before"))


def proportional_bytes(pid: int) -> int:
    """Memory of a process, where a page that n processes share counts 1/n; 0 where there is none such."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _send_all(link: Link, outbox: SimpleQueue[Submit | Cancel | None]) -> None:
    """Send in a thread of its own, so that a replica that reads nothing holds up nobody else."""
    with suppress(OSError):
        for message in iter(outbox.get, None):
            send(link.connection, message)


def _closed() -> EngineClosed:
    return EngineClosed("expected an open engine, got one that was closed")
