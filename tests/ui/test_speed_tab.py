import re
from types import SimpleNamespace

import gradio as gr
import pytest

from numprune.errors import InputError
from numprune.evaluation import speed as engine
from numprune.loading import load
from numprune.ui.app import compose
from numprune.ui.report import Section, report_html
from numprune.ui.tabs import speed
from numprune.ui.tabs.speed import BY_RATIO, SPEED, shape

TAB = "speed"
REQUEST = SimpleNamespace(session_hash=TAB)


@pytest.fixture
def tab(small, monkeypatch):
    """The composed page with the small model and one pruned from it: handlers by name and parts by label or id."""
    # Memory takes as long as all times, and is looked at where it is measured.
    monkeypatch.setattr(engine, "measurable", lambda device: False)
    bench, request = small
    bench.enter(TAB, bench.fresh(bench.load(request, "fixture")))
    blocks, shared = compose(bench)
    handlers = {
        fn.name: fn.fn for fn in blocks.fns.values() if fn.fn is not None and fn.fn.__module__ == speed.__name__
    }
    parts = {part.elem_id: part for part in blocks.blocks.values() if getattr(part, "elem_id", None)}
    named = [part for part in blocks.blocks.values() if getattr(part, "label", None)]
    parts |= {part.label: part for part in named if part.label in ("Prompt", "Runs of each")}
    parts["New tokens"] = next(part for part in named if part.label == "New tokens" and part.minimum == 8)
    parts["Ratios"] = next(part for part in named if part.label == "Ratios" and "0.5" in part.value)
    yield bench, shared, handlers, parts
    bench.release(TAB)


def asked(parts, names, **changes):
    given = {"np-speed-models": names, "Prompt": "Once upon a time", "New tokens": 4, "Runs of each": 3} | changes
    return {parts[name]: value for name, value in given.items()}


def test_both_models_are_timed_at_both_batches_and_kept_for_the_report(tab):
    bench, _, handlers, parts = tab
    name = bench.prune(bench.session(TAB), TAB, name="third")
    first, both = handlers["run"](asked(parts, [name]), REQUEST)
    assert "batch 1" in first[parts["np-speed-figures"]]
    assert "batch 8" not in first[parts["np-speed-figures"]]
    shown, table = both[parts["np-race"]], both[parts["np-speed-figures"]]
    assert re.findall(r"<h3>(.*?)</h3>", shown) == ["Dense", "third"]
    assert "Once upon a time" in shown
    assert [f"{each}, batch {batch}" in table for batch in (1, 8) for each in ("Dense", "third")] == [True] * 4
    finding = bench.findings(TAB)[SPEED]
    assert finding.table[["name", "batch", "new_tokens", "repetitions"]].to_numpy().tolist() == [
        [each, batch, 4, 3] for batch in (1, 8) for each in ("Dense", "third")
    ]
    report = report_html([Section(SPEED, finding.parts)], title="t", facts={})
    assert "data-play='race'" in report
    assert "requestAnimationFrame" in report


def test_without_a_pruned_model_there_is_nothing_to_time(tab):
    _, _, handlers, parts = tab
    for names in ([], None):
        with pytest.raises(gr.Error, match="no pruned model chosen"):
            next(handlers["run"](asked(parts, names), REQUEST))
    with pytest.raises(gr.Error, match="no pruned model"):
        next(handlers["run"](asked(parts, ["gone"]), REQUEST))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"New tokens": 512}, "exceed the 256"),
        ({"Runs of each": 2}, "at least 3"),
        ({"Runs of each": None}, "at least 3"),
    ],
)
def test_what_cannot_be_timed_is_refused_and_nothing_is_kept(tab, changes, says):
    bench, _, handlers, parts = tab
    name = bench.prune(bench.session(TAB), TAB)
    with pytest.raises(gr.Error, match=says):
        next(handlers["run"](asked(parts, [name], **changes), REQUEST))
    assert SPEED not in bench.findings(TAB)


def test_stop_stops(tab):
    bench, shared, handlers, parts = tab
    name = bench.prune(bench.session(TAB), TAB)
    run = handlers["run"](asked(parts, [name]), REQUEST)
    next(run)
    shared.jobs.stop(TAB)
    with pytest.raises(gr.Error) as stopped:
        next(run)
    assert stopped.value.title == "Stopped"
    assert SPEED not in bench.findings(TAB)


def test_the_choice_follows_the_pruned_models_and_a_result_stays_until_another_model_opens(tab):
    bench, shared, handlers, parts = tab
    which, shown = parts["np-speed-models"], parts["np-race"]
    before = shared.updates(shared.view(REQUEST), "kept")
    assert "Prune a model" in before[shown]
    name = bench.prune(bench.session(TAB), TAB)
    after = shared.updates(shared.view(REQUEST), "kept")
    assert (after[which].choices, after[which].value) == ([(name, name)], [name])
    assert "Press Measure" in after[shown]
    list(handlers["run"](asked(parts, [name]), REQUEST))
    assert shown not in shared.updates(shared.view(REQUEST), "kept")
    assert "Prune a model" in shared.updates(shared.view(REQUEST), "opened")[shown]


def test_speed_by_ratio_has_the_dense_model_first(tab):
    bench, _, handlers, parts = tab
    *_, last = handlers["run_by_ratio"]({parts["Ratios"]: "0.5"}, REQUEST)
    table = bench.findings(TAB)[BY_RATIO].table
    assert table["ratio"].tolist() == [0.0, 0.5]
    assert table["decode_gain"].tolist()[0] == 1.0
    assert (table["decode_gain_low"] <= table["decode_gain"]).all()
    assert (table["repetitions"] == 5).all()
    assert table["weights"].is_monotonic_decreasing
    assert last[parts["np-speed-ratios"]].count("<tr>") == 3


def test_an_image_is_drawn_from_its_class_and_has_no_text(images_folder):
    model = load(images_folder)
    assert not speed.readable(model)
    assert shape(model, None, 512) == {"prompt_tokens": 1, "new_tokens": model.maximum_length - 1}


def test_a_text_is_read_whole(small):
    model = small[0].load(small[1], "fixture").model
    assert shape(model, "Once upon", 9)["prompt"] == model.tokenizer("Once upon")["input_ids"]
    # An empty prompt is the token a text begins with, where the tokenizer has one.
    assert len(shape(model, "", 9)["prompt"]) == 1
    with pytest.raises(InputError, match="no prompt"):
        shape(SimpleNamespace(tokenizer=lambda text, verbose: {"input_ids": []}), "", 9)
    assert shape(model, None, 64) == {"prompt_tokens": 64, "new_tokens": 64}
