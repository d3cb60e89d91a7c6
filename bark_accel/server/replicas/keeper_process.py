"""The front's side of a keeper."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection

from .messages import Failure, Loaded, Order, receive, send

# Seconds that a keeper and its replicas have to end.
_END_S = 10.0
# What would bind OpenMP's threads to other CPUs than those of their replica, and what starts threads in a keeper.
_UNSET = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_SET = {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

# It imports what this process does, and nothing that lies in the working directory.
_START = (
    "import sys; handle, *sys.path = sys.argv[1:]; from bark_accel.server.replicas.keeper import main; "
    "main(int(handle))"
)


@dataclass(frozen=True)
class Link:
    """A replica that was forked: its process, and the socket to it."""

    pid: int
    connection: Connection

    def hang_up(self) -> None:
        """Close the socket for both sides; whoever waits at it is woken."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


class KeeperProcess:
    """A process that loads what an order says, and forks replicas of it. It ends when this one does."""

    def __init__(self, order: Order):
        ours, theirs = socket.socketpair()
        self._name = order.spec.name
        self._control = Connection(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        send(self._control, order)

    @property
    def gone(self) -> bool:
        """Tell whether it has ended."""
        return self._process.poll() is not None

    def loaded(self) -> Loaded:
        """Wait until the model is loaded. Raises what loading raised, and `OSError` where the process has ended."""
        try:
            answer = receive(self._control)
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, Failure):
            raise answer.restored()
        assert isinstance(answer, Loaded)
        return answer

    def fork(self, index: int) -> Link:
        """Start the replica of that index. Raises `OSError` where the process has ended."""
        try:
            send(self._control, index)
            pid = receive(self._control)
            return Link(pid, Connection(reduction.recv_handle(self._control)))
        except (EOFError, OSError):
            raise self._ended() from None

    def end(self) -> None:
        """End it; its replicas have to be hung up before."""
        Link(self._process.pid, self._control).hang_up()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> OSError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        return OSError(f"the process that loads {self._name} has ended (status {self._process.returncode})")


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**own, **_SET}
