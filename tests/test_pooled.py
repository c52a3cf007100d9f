"""The pool of metrics: nothing is shown of few requests, nothing is lost, and what is shown at a time fits together."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed

from askance.service.observability.pooled import P_VALUE_BUCKETS, Pool, coarse


class Pooled:
    """A counter and a histogram in a pool, a clock in our hands, and the page that shows them."""

    def __init__(self, requests: int = 3, seconds: float = 10.0) -> None:
        self.now = 100.0
        self.pool = Pool(requests, seconds, lambda: self.now)
        self.flags = Counter("flags", "Flags.", ["detector"], registry=self.pool.registry)
        self.p_value = Histogram("p", "P-values.", buckets=P_VALUE_BUCKETS, registry=self.pool.registry)
        self.page = CollectorRegistry()
        self.page.register(self.pool)
        self.flags.labels("som")

    def answer(self, request: object, p: float = 0.5) -> None:
        with self.pool.counting(request):
            self.flags.labels("som").inc()
            self.p_value.observe(coarse(p))

    def shown(self) -> tuple[float | None, float | None]:
        return self.page.get_sample_value("flags_total", {"detector": "som"}), self.page.get_sample_value("p_count")


def test_few_requests_are_shown_to_nobody() -> None:
    pooled = Pooled()
    pooled.now += 1000
    for _ in range(2):
        pooled.answer(object())
        assert pooled.shown() == (0, 0)
    pooled.answer(object())
    assert pooled.shown() == (3, 3)


def test_nor_are_many_too_soon() -> None:
    pooled = Pooled()
    for _ in range(50):
        pooled.answer(object())
    pooled.now += 9.9
    assert pooled.shown() == (0, 0)
    pooled.now += 0.1
    assert pooled.shown() == (50, 50)
    for _ in range(50):
        pooled.answer(object())
    assert pooled.shown() == (50, 50)
    pooled.now += 10
    assert pooled.shown() == (100, 100)


def test_what_was_shown_counts_towards_nothing_again() -> None:
    pooled = Pooled()
    pooled.now += 10
    for _ in range(3):
        pooled.answer(object())
    assert pooled.shown() == (3, 3)
    pooled.now += 10
    pooled.answer(object())
    pooled.answer(object())
    assert pooled.shown() == (3, 3)


def test_who_asks_for_one_metric_sees_no_more_of_it() -> None:
    """`/metrics?name[]=flags_total`, as prometheus_client has it."""
    pooled = Pooled()
    pooled.now += 10
    pooled.answer(object())
    (family,) = pooled.page.restricted_registry(["flags_total"]).collect()
    assert [sample.value for sample in family.samples] == [0]


def test_a_batch_is_one_request() -> None:
    pooled = Pooled()
    pooled.now += 10
    batch = object()
    for _ in range(40):
        pooled.answer(batch)
    pooled.answer(object())
    assert pooled.shown() == (0, 0)
    pooled.answer(object())
    assert pooled.shown() == (42, 42)


def test_requests_that_are_over_do_not_pass_for_others() -> None:
    """Each lives at the address of the one before, unless the pool keeps it."""
    pooled = Pooled()
    pooled.now += 10
    for _ in range(3):
        pooled.answer(object())
    assert pooled.shown() == (3, 3)


def test_a_series_that_comes_later_starts_at_zero() -> None:
    pooled = Pooled()
    with pooled.pool.counting():
        pooled.flags.labels("new").inc(5)
    assert pooled.page.get_sample_value("flags_total", {"detector": "new"}) == 0


def test_what_fails_while_counting_is_no_request() -> None:
    pooled = Pooled(requests=1, seconds=0)
    with pytest.raises(ValueError, match="bad"), pooled.pool.counting(object()):
        raise ValueError("bad")
    assert pooled.shown() == (0, 0)


def test_one_look_sees_what_fits_together() -> None:
    pooled = Pooled(requests=1, seconds=0)
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            pooled.answer(object())

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            flags, p_values = [
                sample.value
                for family in pooled.page.collect()
                for sample in family.samples
                if sample.name in ("flags_total", "p_count")
            ]
            assert flags == p_values
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@given(st.lists(st.floats(1e-6, 1.0), max_size=60), st.integers(1, 9))
def test_nothing_is_lost(values: list[float], requests: int) -> None:
    pooled = Pooled(requests, 0)
    seen: list[float] = [0]
    for value in values:
        pooled.answer(object(), value)
        flags, count = pooled.shown()
        assert flags == count
        if flags != seen[-1]:
            assert flags is not None
            assert flags - seen[-1] >= requests
            seen.append(flags)
    assert seen[-1] == len(values) - len(values) % requests


@given(st.floats(1e-9, 1.0))
def test_a_coarse_p_value_is_of_the_same_bucket(p: float) -> None:
    for bound in P_VALUE_BUCKETS:
        assert (p <= bound) == (coarse(p) <= bound)
    assert any(coarse(p) == pytest.approx(middle) for middle in (0.005, 0.03, 0.075, 0.3, 0.75))


def test_the_page_is_of_both_formats() -> None:
    pooled = Pooled(requests=1, seconds=0)
    for p in (0.003, 0.2, 1.0):
        pooled.answer(object(), p)
    text = openmetrics(pooled.page).decode()  # type: ignore[no-untyped-call]
    (histogram,) = [family for family in parsed(text) if family.name == "p"]  # type: ignore[no-untyped-call]
    assert {sample.name for sample in histogram.samples} == {"p_bucket", "p_count", "p_sum"}
    assert 'p_bucket{le="0.01"} 1.0' in generate_latest(pooled.page).decode()
