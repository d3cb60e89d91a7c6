"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .replicas.engine import Replica

_SECONDS = (0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1, 1.5, 2, 4, 8)


class Loaded(Protocol):
    """A loaded model, as it is shown."""

    name: str

    @property
    def rows_in_use(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def replicas(self) -> list[Replica]: ...


class Metrics:
    """Counts what a server does; every server has its own.

    Parameters
    ----------
    loaded : callable
        Returns the models that are loaded.
    """

    def __init__(self, loaded: Callable[[], Iterable[Loaded]]):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_Models(loaded))
        self.requests = Counter(
            "bark_accel_requests", "Speech requests, by the status of the answer.", ["status"], registry=self.registry
        )
        self.left = Counter("bark_accel_clients_left", "Clients that left before the end.", registry=self.registry)
        self.sound = Counter("bark_accel_sound_seconds", "Seconds of sound generated.", registry=self.registry)
        self.first_sound = Histogram(
            "bark_accel_first_sound_seconds",
            "From the request to its first sound.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.real_time_factor = Histogram(
            "bark_accel_real_time_factor",
            "Seconds a whole request took for each second of its sound.",
            buckets=_FACTORS,
            registry=self.registry,
        )


class _Models(Collector):
    """The state of each model at the time it is asked for."""

    def __init__(self, loaded: Callable[[], Iterable[Loaded]]):
        self._loaded = loaded

    def collect(self) -> Iterator[Metric]:
        rows = GaugeMetricFamily("bark_accel_rows_in_use", "Utterances that are generated.", labels=["model"])
        queue = GaugeMetricFamily("bark_accel_queue", "Requests that wait.", labels=["model"])
        memory = GaugeMetricFamily("bark_accel_model_bytes", "Weights and caches.", labels=["model"])
        for model in self._loaded():
            rows.add_metric([model.name], model.rows_in_use)
            queue.add_metric([model.name], model.waiting)
            memory.add_metric([model.name], model.nbytes)
        yield from (rows, queue, memory)
        yield from self._replicas()

    def _replicas(self) -> Iterator[Metric]:
        labels = ["model", "replica"]
        ready = GaugeMetricFamily("bark_accel_replica_ready", "1: it takes requests.", labels=labels)
        rows = GaugeMetricFamily("bark_accel_replica_rows_in_use", "Utterances that it generates.", labels=labels)
        deaths = CounterMetricFamily("bark_accel_replica_deaths", "Processes that ended by themselves.", labels=labels)
        memory = GaugeMetricFamily(
            "bark_accel_replica_bytes", "Its memory, and its part of what it shares with others.", labels=labels
        )
        for model in self._loaded():
            for replica in model.replicas:
                at = [model.name, str(replica.index)]
                ready.add_metric(at, replica.ready)
                rows.add_metric(at, len(replica.requests))
                deaths.add_metric(at, replica.deaths)
                memory.add_metric(at, replica.nbytes)
        yield from (ready, rows, deaths, memory)
