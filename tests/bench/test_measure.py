"""The benchmark's own bookkeeping: turns, percentiles, and limits that are not absurd."""

import numpy as np
import pytest

from chan_rt.bench import measure
from chan_rt.bench.measure import Latency, machine, take_turns


def test_candidates_take_turns_and_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    found = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0, warmup=2)
    assert calls == ["a", "a", "b", "b", *["a", "b"] * 5]
    assert found["a"].runs == found["b"].runs == 5


def test_percentiles_are_milliseconds() -> None:
    latency = Latency.of(list(np.arange(1, 101) / 1000))
    assert latency.p50 == pytest.approx(50.5)
    assert latency.p90 == pytest.approx(90.1)
    assert latency.best == pytest.approx(1.0)


def test_machine_says_what_is_missing() -> None:
    record = machine(("numpy", "no-such-package"))
    assert record["numpy"] == np.__version__
    assert record["no-such-package"] == "not installed"
    assert int(record["cores"]) >= 1


def test_the_first_calls_of_a_turn_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measure, "wait_for_threads", lambda: calls.append("|"))
    monkeypatch.setattr(measure, "SETTLED", 1e-4)
    found = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0, warmup=0, in_a_row=3)
    turns = "".join(calls).split("|")[1:]
    assert [set(turn) for turn in turns] == [{"a"}, {"b"}] * 5
    assert all(len(turn) > 3 for turn in turns)
    assert found["a"].runs == 15


def test_a_turn_begins_once_other_threads_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([0.000, 0.010, 0.020, 0.029, 0.030, 0.0302, 0.0302])  # CPU seconds before and after each sleep
    slept: list[float] = []
    monkeypatch.setattr(measure.time, "process_time", lambda: next(used))
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    measure.wait_for_threads()
    assert len(slept) == 3
