import json
import math

import pytest
from architectures import tiny_model

import numprune
from numprune import Cancelled, InputError, Recipe, allocate, compare_speed, prune, score
from numprune.evaluation import speed
from numprune.evaluation.random_models import Shape, random_llama

QUICK = {"prompt_tokens": 6, "new_tokens": 3}


@pytest.fixture
def pruned(model, stats):
    return prune(model, allocate(score(model, stats), Recipe(ratio=0.5)), stats)


def scripted(monkeypatch, *runs):
    """Runs with these times: (seconds of every token) of warm-ups and repetitions in the order they are made."""
    waiting = iter(runs)
    monkeypatch.setattr(speed, "measurable", lambda device: False)
    monkeypatch.setattr(
        speed, "run_once", lambda model, prompt, new_tokens, cancel: speed.Run((1, 2, 3), next(waiting))
    )


def test_gains_are_of_runs_made_side_by_side(model, pruned, monkeypatch):
    """A machine that halves its speed for one round changes no gain of that round."""
    warm = (9.0, 9.5, 10.0)
    scripted(
        monkeypatch,
        *(warm, warm),
        *((1.0, 2.0, 3.0), (0.5, 1.0, 1.5)),
        *((2.0, 4.0, 6.0), (1.0, 2.0, 3.0)),
        *((1.0, 2.0, 3.0), (1.0, 3.0, 5.0)),
    )
    dense, other = compare_speed({"Dense": model, "half": pruned}, prompt=[4, 4], new_tokens=2).models
    assert dense.decode_gain == dense.prefill_gain == (1.0, 1.0, 1.0)
    assert other.decode_gain == (2.0, 0.5, 2.0)
    assert other.prefill_gain == (2.0, 1.0, 2.0)
    assert other.speed.decode == (2 / 2.0, 2 / 4.0, 2 / 1.0)
    assert (other.speed.prompt_tokens, other.speed.new_tokens, other.speed.repetitions) == (2, 2, 3)
    assert dense.run.seconds == (1.0, 2.0, 3.0)
    assert other.run.seconds == (1.0, 2.0, 3.0)


def test_promises_are_counted_from_the_sizes(model, pruned):
    batch, prompt, new = 8, 6, 4
    found = compare_speed({"Dense": model, "half": pruned}, prompt_tokens=prompt, new_tokens=new, batch=batch)
    for timed, source in zip(found.models, (model, pruned), strict=True):
        # A tied embedding is read whole, as the output head.
        assert source.module.get_input_embeddings().weight is source.module.get_output_embeddings().weight
        cache = numprune.sizes(source).kv_bytes
        assert timed.step_bytes == source.bytes + batch * cache * (prompt + new / 2)
        assert timed.memory == source.bytes + batch * cache * (prompt + new)
        head = source.module.get_output_embeddings().weight.numel() * 2
        per_token = numprune.sizes(source, context=prompt // 2).flops
        assert timed.prompt_flops == batch * ((per_token - head) * prompt + head)
    dense, half = found.models
    promised = found.promised(half)
    assert promised["decode"] == dense.step_bytes / half.step_bytes > 1
    assert promised["prefill"] == dense.prompt_flops / half.prompt_flops > 1
    assert promised["memory"] == half.memory / dense.memory < 1
    assert found.promised(dense) == {"decode": 1.0, "prefill": 1.0, "memory": 1.0}


def test_an_embedding_of_its_own_is_only_looked_up():
    model = random_llama(Shape(hidden=32, channels=64, layers=2, heads=4, vocabulary=512), device="cpu")
    (timed,) = compare_speed({"Dense": model}, **QUICK).models
    table = model.module.get_input_embeddings().weight
    assert table is not model.module.get_output_embeddings().weight
    cache = numprune.sizes(model).kv_bytes * 15 // 2
    assert timed.step_bytes == model.bytes - table.numel() * table.element_size() + cache


def test_the_text_of_the_run_is_there_in_pieces(model, tokenizer):
    prompt = tokenizer("the dog and the cat")["input_ids"]
    (timed,) = compare_speed({"Dense": model}, prompt=prompt, new_tokens=5).models
    assert len(timed.pieces) == len(timed.run.tokens) == len(timed.run.seconds) == 6
    assert list(timed.run.seconds) == sorted(timed.run.seconds)
    # A piece is what the token adds.
    assert "".join(timed.pieces) == tokenizer.decode(timed.run.tokens)


def test_the_table_and_the_json_say_what_was_measured(model, pruned):
    found = compare_speed({"Dense": model, "half": pruned}, batch=2, **QUICK)
    table = found.to_pandas()
    assert table["name"].tolist() == ["Dense", "half"]
    half = table.iloc[1]
    assert half["decode_low"] <= half["decode"] <= half["decode_high"]
    assert half["decode_gain_low"] <= half["decode_gain"] <= half["decode_gain_high"]
    assert half["decode_promised"] == found.promised(found.models[1])["decode"]
    assert (half["batch"], half["prompt_tokens"], half["new_tokens"], half["repetitions"]) == (2, 6, 3, 3)
    assert (half["device"], half["dtype"]) == ("cpu", "float32")
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [timed["name"] for timed in again["models"]] == ["Dense", "half"]
    assert math.isclose(again["models"][1]["promised"]["decode"], half["decode_promised"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repetitions": 2}, "repetitions is 2; give at least 3"),
        ({"batch": 0}, "must be at least 1"),
        ({"prompt": []}, "must be at least 1"),
        ({"prompt_tokens": 62}, r"62 \+ 3 tokens exceed the 64"),
    ],
)
def test_numbers_out_of_range_are_refused(model, options, says):
    with pytest.raises(InputError, match=says):
        compare_speed({"Dense": model}, **{**QUICK, **options})


def test_there_must_be_a_model_and_stop_stops():
    with pytest.raises(InputError, match="no model to time"):
        compare_speed({})

    class Event:
        def is_set(self):
            return True

    with pytest.raises(Cancelled):
        compare_speed({"Dense": tiny_model("llama")}, **QUICK, cancel=Event())


@pytest.mark.cuda
def test_a_gpu_notes_the_times_itself():
    model = random_llama(Shape(hidden=256, channels=512, layers=4, heads=4, vocabulary=64), device="cuda")
    began = speed.now(model.device)
    (timed,) = compare_speed({"Dense": model}, **QUICK).models
    took = speed.now(model.device) - began
    assert list(timed.run.seconds) == sorted(timed.run.seconds)
    assert 0 < timed.run.seconds[0] < timed.run.seconds[-1] < took
