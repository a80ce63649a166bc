"""What a step costs the server: sizes are exact, and times are of this process alone."""

import time

import pytest

from numprune import NumpruneError
from numprune.evaluation.random_models import Shape
from numprune.ui import bench
from numprune.ui.bench import SEVEN_BILLION, SEVENTY_BILLION, bench_dashboard

SMALL = Shape(hidden=64, channels=96, layers=3, heads=4, vocabulary=100)


def test_both_kinds_of_steps_are_measured_in_both_orders():
    calls = []
    result = bench_dashboard(SMALL, repetitions=3, progress=lambda *call: calls.append(call))
    assert [figure.name for figure in result.figures] == [
        f"{what}, channels {order}"
        for order in ("sorted", "index")
        for step in ("ratio", "drag")
        for what in (step, f"payload of a {step}")
    ]
    assert {figure.n for figure in result.figures} == {3}
    assert calls[-1] == (4, 4, "drag, channels index")


def test_what_is_counted_is_what_is_sent(monkeypatch):
    """Every step changes the plan, and the plan is in it."""
    sent = {"moved": [], "dragged": []}
    for name, seen in sent.items():
        step = getattr(bench, name)
        monkeypatch.setattr(bench, name, lambda *args, step=step, seen=seen: seen.append(step(*args)) or seen[-1])
    bench_dashboard(SMALL, repetitions=2)
    plans = [
        next(value["plan"] for value in each if isinstance(value, dict) and "plan" in value) for each in sent["moved"]
    ]
    for steps in (plans[:3], plans[3:], sent["dragged"][:3], sent["dragged"][3:]):
        assert all({"heads", "gone", "loss", "curve"} <= plan.keys() for plan in steps)
        assert len({str(plan["gone"]) for plan in steps}) == 3


def test_a_step_that_is_refused_is_not_timed():
    with pytest.raises(NumpruneError, match="refused"):
        bench_dashboard(Shape(hidden=64, channels=96, layers=1, heads=4, vocabulary=100), repetitions=1)


@pytest.mark.parametrize("shape", [SEVEN_BILLION, SEVENTY_BILLION], ids=["7B", "70B"])
def test_a_step_of_a_large_model_sends_little(shape):
    result = bench_dashboard(shape, repetitions=1)
    for figure in result.figures:
        if figure.unit == "bytes":
            assert figure.max <= 20_000, figure.name


def test_a_step_of_a_seven_billion_parameter_model_takes_the_server_little_time(monkeypatch):
    """Time of this process, since others may hold the processor meanwhile."""
    monkeypatch.setattr(bench.time, "perf_counter", time.process_time)
    result = bench_dashboard(SEVEN_BILLION, repetitions=5)
    for figure in result.figures:
        if figure.unit == "s":
            assert figure.median <= 0.15, figure.name
