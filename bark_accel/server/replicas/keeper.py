"""The process that has a model's weights: it loads and converts them once, and forks the replicas, which share them.

It computes nothing itself once it has loaded, and has no threads of its own that a fork would lose.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch
from torch import nn

from bark_accel import BarkEngine
from bark_accel.bench.models import LoadedBark, load_bark, quiet_transformers

from ..loading import accelerated, greet, weight_bytes
from .messages import Failure, Loaded, Order, receive, send
from .replica import serve

Module = TypeVar("Module", bound=nn.Module)
_context = multiprocessing.get_context("fork")
# Seconds that a replica has to end once its socket is closed.
_END_S = 5.0


def main(handle: int) -> None:
    """Run a keeper: an `Order` comes over the socket of that handle, then the index of each replica to fork."""
    # The front has the signals of the whole group, and drains; its sockets' end is what ends a keeper.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control = Connection(handle)
    children: list[BaseProcess] = []
    with suppress(EOFError, OSError):
        order: Order = receive(control)
        loaded = _loaded(order, control)
        while loaded is not None:
            children.append(_fork(loaded, order, receive(control), control))
            children = [child for child in children if child.is_alive()]
    for child in children:
        child.join(_END_S)
        child.kill()
        child.join()


def _loaded(order: Order, control: Connection) -> LoadedBark | None:
    """Load and tell the front; None where that failed."""
    try:
        # In a thread that ends: OpenMP's threads go with it, and a fork loses none.
        with ThreadPoolExecutor(1) as pool:
            loaded, answer = pool.submit(_load, order).result()
    except Exception as error:
        send(control, Failure.of(error))
        return None
    # Counters of references and marks of the collector would copy the pages that they stand on.
    gc.collect()
    gc.freeze()
    send(control, answer)
    return loaded


def _load(order: Order) -> tuple[LoadedBark, Loaded]:
    quiet_transformers()
    torch.set_num_threads(order.threads)
    loaded = load_bark(order.spec.path)
    outline = _outline(loaded)
    accelerated(loaded, order.spec)
    with BarkEngine(loaded.model, max_rows=1) as engine:
        greet(engine, loaded)
    return loaded, Loaded(outline, weight_bytes(loaded))


def _outline(loaded: LoadedBark) -> LoadedBark:
    """The same with a model that has settings, its parts' too, but no weights."""
    model = _bare(loaded.model)
    model._modules = {name: _bare(part) for name, part in loaded.model.named_children()}
    return replace(loaded, model=model)


def _bare(module: Module) -> Module:
    bare = copy.copy(module)
    bare._modules, bare._parameters, bare._buffers = {}, {}, {}
    return bare


def _fork(loaded: LoadedBark, order: Order, index: int, control: Connection) -> BaseProcess:
    """Start a replica; the front gets its process id and one end of a socket to it."""
    front, own = _context.Pipe()
    child = _context.Process(target=_child, args=(loaded, order, index, own, (control, front)))
    child.start()
    own.close()
    send(control, child.pid)
    reduction.send_handle(control, front.fileno(), os.getppid())
    front.close()
    return child


def _child(
    loaded: LoadedBark, order: Order, index: int, own: Connection, others: tuple[Connection, Connection]
) -> None:
    for connection in others:
        connection.close()
    serve(loaded, order, index, own)
