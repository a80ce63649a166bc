import json

import pytest
import torch
from architectures import tiny_model

from numprune import Cancelled, InputError, measure_speed
from numprune.evaluation import memory, speed
from numprune.evaluation.random_models import Shape, random_llama

QUICK = {"prompt_tokens": 4, "new_tokens": 3, "repetitions": 2}
linux = pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux")
CPU = torch.device("cpu")


def test_times_are_those_of_the_clock(model, monkeypatch):
    monkeypatch.setattr(speed, "measurable", lambda device: False)
    # Per repetition: the start, the first token and six more; the first repetition is a warm-up.
    clock = iter(
        [
            *(0.0, 50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 90.0),
            *(100.0, 102.0, 103.0, 104.0, 105.0, 106.0, 107.0, 108.0),
            *(200.0, 201.0, 203.0, 205.0, 207.0, 209.0, 211.0, 213.0),
            *(300.0, 304.0, 304.5, 305.0, 305.5, 306.0, 306.5, 307.0),
        ]
    )
    monkeypatch.setattr(speed, "now", lambda device: next(clock))
    result = measure_speed(model, prompt_tokens=8, new_tokens=6, batch=2, repetitions=3)
    assert result.first_token == (2.0, 1.0, 4.0)
    assert result.prefill == (16 / 2, 16 / 4, 16 / 1)
    assert result.decode == (12 / 6, 12 / 12, 12 / 3)
    assert result.peak_bytes is None
    assert (result.prompt_tokens, result.new_tokens, result.batch, result.repetitions) == (8, 6, 2, 3)
    assert (result.device, result.dtype) == ("cpu", "float32")
    assert json.loads(json.dumps(result.to_dict()))["first_token"] == [2.0, 1.0, 4.0]


def test_every_token_has_its_time(model, monkeypatch):
    monkeypatch.setattr(speed, "measurable", lambda device: False)
    clock = iter([0.0, 1.0, 2.0, 3.0, 10.0, 12.0, 12.25, 14.0])
    monkeypatch.setattr(speed, "now", lambda device: next(clock))
    (record,) = speed.measure_in_turn([model], [5, 9], new_tokens=2, batch=1, repetitions=1)
    (run,) = record.runs
    assert run.seconds == (2.0, 2.25, 4.0)
    assert (run.first, run.rest) == (2.0, 2.0)
    # The tokens are those of greedy decoding.
    ids = torch.tensor([[5, 9]])
    for token in run.tokens:
        assert model.module(input_ids=ids).logits[0, -1].argmax() == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_models_take_turns(monkeypatch):
    monkeypatch.setattr(speed, "measurable", lambda device: True)
    first, second = tiny_model("llama"), tiny_model("llama")
    names, took = {id(first): "A", id(second): "B"}, []

    def run(model, prompt, new_tokens, cancel):
        took.append(names[id(model)])
        return speed.Run((0, 0), (1.0, float(len(took))))

    def growth(work, device):
        took.append("memory of")
        work()
        return 7

    monkeypatch.setattr(speed, "run_once", run)
    monkeypatch.setattr(speed, "growth", growth)
    calls = []
    records = speed.measure_in_turn(
        [first, second], [1], new_tokens=1, batch=1, repetitions=2, progress=lambda *call: calls.append(call)
    )
    assert took == [*"ABABAB", *(["memory of", "A", "memory of", "B"] * 2)]
    # The first of each was the warm-up.
    assert [[run.seconds[-1] for run in record.runs] for record in records] == [[3, 5], [4, 6]]
    assert [record.peaks for record in records] == [[first.bytes + 7] * 2, [second.bytes + 7] * 2]
    assert [done for done, _, _ in calls] == list(range(1, 11))


def test_memory_is_that_of_the_weights_and_the_growth(model, monkeypatch):
    grown = iter([300, 100, 200])

    def growth(work, device):
        work()
        return next(grown)

    monkeypatch.setattr(speed, "measurable", lambda device: True)
    monkeypatch.setattr(speed, "growth", growth)
    result = measure_speed(model, prompt_tokens=4, new_tokens=3, repetitions=5)
    assert result.peak_bytes == (model.bytes + 200, model.bytes + 100, model.bytes + 300)


@linux
def test_a_cache_shows_in_the_peak():
    model = random_llama(Shape(hidden=256, channels=64, layers=8, heads=4, vocabulary=64), device="cpu")
    short, long = (
        measure_speed(model, prompt_tokens=tokens, new_tokens=1, repetitions=3, batch=4) for tokens in (8, 1024)
    )
    cached = 4 * 1016 * 8 * 2 * 256 * 4
    assert short.peak_bytes[0] >= model.bytes
    # Besides the cache there is what a layer works with: attention weights, twice as large here.
    assert 0.9 * cached < long.peak_bytes[0] - short.peak_bytes[0] < 3.5 * cached


@linux
def test_growth_is_the_peak_and_not_what_is_left():
    def work():
        torch.ones(8 * 2**20).add_(1)

    assert memory.growth(work, CPU) == pytest.approx(32 * 2**20, rel=0.1)
    # Freed memory is not mistaken for memory that need not be taken.
    assert memory.growth(work, CPU) == pytest.approx(32 * 2**20, rel=0.1)
    assert memory.growth(lambda: None, CPU) < 2**20


def test_memory_is_not_known_everywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "missing")
    assert not memory.measurable(CPU)
    assert not memory.measurable(torch.device("mps"))
    assert memory.measurable(torch.device("cuda"))
    assert measure_speed(tiny_model("llama"), **QUICK).peak_bytes is None


def test_progress_reaches_its_end_and_cancel_stops(model):
    calls = []
    measure_speed(model, **QUICK, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(1, len(calls) + 1))
    assert {total for _, total, _ in calls} == {len(calls)}

    class Event:
        def is_set(self):
            return True

    with pytest.raises(Cancelled):
        measure_speed(model, **QUICK, cancel=Event())


def test_stop_waits_for_a_token_and_not_for_a_run(model):
    class Event:
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked > 3

    event = Event()
    with pytest.raises(Cancelled):
        measure_speed(model, prompt_tokens=4, new_tokens=50, repetitions=1, cancel=event)
    assert event.asked == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt_tokens": 60, "new_tokens": 5}, r"60 \+ 5 tokens exceed the 64 this model supports; ask for fewer"),
        ({"repetitions": 0}, "must be at least 1"),
        ({"batch": 0}, "must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(model, options, says):
    with pytest.raises(InputError, match=says):
        measure_speed(model, **{**QUICK, **options})


@pytest.mark.cuda
def test_memory_on_cuda_is_that_of_weights_cache_and_work():
    model = random_llama(Shape(hidden=256, channels=64, layers=8, heads=4, vocabulary=64), device="cuda")
    result = measure_speed(model, prompt_tokens=1024, new_tokens=1, repetitions=3, batch=4)
    cached = 4 * 1024 * 8 * 2 * 256 * model.dtype.itemsize
    assert model.bytes + cached < result.peak_bytes[0] < model.bytes + 3 * cached
