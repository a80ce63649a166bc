import json
import re
from html import unescape

import pytest

from numprune.evaluation.speed import Run, Speed
from numprune.evaluation.speed_comparison import SpeedComparison, Timed
from numprune.ui import race


def timed(name, seconds, gain, *, batch=1, pieces=("<b>", "once", " upon"), step_bytes=100, peak=(3e6, 2e6, 4e6)):
    speed = Speed(
        prefill=(200.0, 190.0, 210.0),
        decode=(40.0, 39.0, 41.0),
        first_token=(0.01, 0.009, 0.011),
        peak_bytes=peak,
        prompt_tokens=8,
        new_tokens=len(seconds) - 1,
        batch=batch,
        repetitions=3,
        device="cpu",
        dtype="float32",
    )
    run = Run(tuple(range(len(seconds))), tuple(seconds))
    return Timed(name, speed, gain, (1.1, 1.0, 1.2), step_bytes, 1000, 2_000_000, run, tuple(pieces))


@pytest.fixture
def comparison():
    same = (1.0, 1.0, 1.0)
    return SpeedComparison(
        [timed("Dense", (0.1, 0.2, 0.3), same), timed("30% <x>", (0.05, 0.1, 0.15), (2.0, 1.9, 2.1), step_bytes=80)],
        threads=2,
    )


def test_the_replay_holds_every_time_and_shows_how_it_ends(comparison):
    shown = race.replay(comparison, "Prompt & ")
    data = json.loads(unescape(re.search(r"data-race='([^']*)'", shown)[1]))
    assert data["runners"][0] == {"seconds": [0.1, 0.2, 0.3], "pieces": ["<b>", "once", " upon"]}
    assert data["runners"][1]["seconds"] == [0.05, 0.1, 0.15]
    assert "<b>once" not in shown
    assert shown.count("&lt;b&gt;once upon") == 2
    assert "Prompt &amp; " in shown
    assert "30% &lt;x&gt;" in shown
    assert "10.0 tokens/s · 3 of 3 · 0.30 s" in shown
    assert "20.0 tokens/s · 3 of 3 · 0.15 s" in shown
    assert shown.count("aria-valuenow='3'") == 2
    assert unescape(re.search(r"data-verdict='([^']*)'", shown)[1]) == race.verdict(comparison)


def test_without_a_prompt_there_is_no_text(comparison):
    shown = race.replay(comparison, None)
    assert "once" not in shown
    assert "<p>" not in shown


@pytest.mark.parametrize(("last", "pace"), [(10.0, "1"), (2.0, "0.5"), (0.8, "0.25"), (0.1, "0.1"), (0.001, "0.1")])
def test_a_short_run_is_replayed_slowly(last, pace):
    both = [timed(name, (last / 2, last), (1.0, 1.0, 1.0), pieces="ab") for name in "AB"]
    assert f"<option value='{pace}' selected>" in race.replay(SpeedComparison(both, 1), None)


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        ((1.5, 1.4, 1.6), "B decodes 1.50x as fast as A (1.40x to 1.60x in 3 runs each, in turn); its sizes promise"),
        ((0.8, 0.7, 0.9), "B decodes 0.80x as fast as A, so slower (0.70x to 0.90x"),
        ((1.1, 0.9, 1.2), "B decodes 1.10x as fast as A, which may be chance (0.90x to 1.20x"),
    ],
)
def test_the_verdict_tells_slowdowns_and_chance(gain, says):
    both = [timed("A", (1.0, 2.0), (1.0, 1.0, 1.0)), timed("B", (1.0, 2.0), gain, step_bytes=50)]
    told = race.verdict(SpeedComparison(both, 1))
    assert told.startswith(says)
    assert told.endswith("promise 2.00x.")


def test_the_table_has_every_figure_with_its_spread_and_what_it_was_measured_on(comparison):
    eight = SpeedComparison([timed("Dense", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), batch=8)], 2)
    shown = race.figures([comparison, eight])
    rows = re.findall(r"<tr><th scope='row'>(.*?)</th>(.*?)</tr>", shown)
    assert [name for name, _ in rows] == ["Dense, batch 1", "30% &lt;x&gt;, batch 1", "Dense, batch 8"]
    cells = re.findall(r"<td>(.*?)</td>", rows[1][1])
    assert cells == [
        "40.0<small>39.0 to 41.0</small>",
        "2.00x<small>1.90x to 2.10x</small>",
        "1.25x",
        "200.0<small>190.0 to 210.0</small>",
        "1.10x<small>1.00x to 1.20x</small>",
        "1.00x",
        "10.0<small>9.0 to 11.0</small>",
        "3.0<small>2.0 to 4.0</small>",
        "2.0 · 1.00x",
    ]
    assert "of 3 runs of each model, taken in turn after a warm-up: 8 prompt and 2 new tokens" in shown
    assert "on cpu in float32, 2 threads" in shown
    assert "Peak memory: weights and what the process grows by" in shown


def test_a_model_is_as_fast_as_itself():
    assert race.gain((1.0, 1.0, 1.0)) == "1.00x"
    assert race.gain((1.0, 0.9, 1.2)) == "1.00x<small>0.90x to 1.20x</small>"
    assert race.spread((1234.5, 1000.0, 2000.0)) == "1,234<small>1,000 to 2,000</small>"


def test_unknown_memory_is_left_empty():
    shown = race.figures([SpeedComparison([timed("A", (1.0, 2.0), (1.0, 1.0, 1.0), peak=None)], 1)])
    assert "<td></td>" in shown
    assert "Peak memory:" not in shown
