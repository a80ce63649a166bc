"""Recipes as links and commands, and the report of a tab."""

import base64
import shlex
import zlib

import pandas as pd
import pytest
import torch

from numprune.cli import main
from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.ui import html
from numprune.ui.command_line import command_line
from numprune.ui.facts import chip, facts
from numprune.ui.opening import request_of, resumed
from numprune.ui.session import LoadRequest
from numprune.ui.session_report import budget_cards, session_report
from numprune.ui.share import MOST_LINK, packed, unpacked

MLP = ModuleKey(3, "mlp")


def test_a_link_holds_the_whole_recipe(scored):
    _, session = scored
    recipe = session.recipe.replace(ratio=0.5, ratios={MLP: 0.25}, keep={ModuleKey(0, "attention"): (1, 2)})
    text = packed(recipe)
    assert unpacked(text) == recipe
    assert len(text) < 500
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def zipped(text):
    return base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "é",
        "A" * (MOST_LINK + 1),
        zipped("[1]"),
        zipped('{"version": 9}'),
        zipped(" " * 10**7),
        zipped("[" * 9999),
    ],
)
def test_a_link_that_holds_none_is_refused(text):
    with pytest.raises(InputError):
        unpacked(text)


def test_what_a_recipe_was_made_with_is_opened(scored):
    start = LoadRequest("tiny-stories")
    fits = Recipe(model="tiny-stories", calibration=CalibrationRecipe("self", 128, 256))
    assert request_of(start, fits) is start
    other = fits.replace(calibration=CalibrationRecipe("c4", 8, 64))
    assert request_of(start, other) == LoadRequest("tiny-stories", calibration=other.calibration)
    for nobody in (fits.replace(model=None), fits.replace(calibration=CalibrationRecipe(None))):
        with pytest.raises(InputError):
            request_of(start, nobody)


def test_a_recipe_of_a_link_is_taken_over_where_it_fits(composed, view):
    shared, _, tab = composed
    recipe = view.session.recipe.replace(ratio=0.5, scorer="newton", ratios={MLP: 0.25})
    with shared.job(tab) as job:
        session = resumed(shared, tab.session_hash, packed(recipe), "link", job)
        assert session.recipe == recipe
        assert view.workbench.scored(session, "newton")
        stranger = recipe.replace(fingerprint="0" * 16)
        assert resumed(shared, tab.session_hash, packed(stranger), "link", job) is None
        assert resumed(shared, tab.session_hash, "nonsense", "link", job) is None
        assert resumed(shared, tab.session_hash, recipe.to_json(), "last visit", job).recipe == recipe


@pytest.mark.parametrize("changes", [{}, {"ratios": {MLP: 0.25}, "swaps": 4}, {"round_channels": 64, "uniform": True}])
def test_the_command_line_does_what_the_page_shows(scored, tmp_path, changes):
    _, session = scored
    session = session.changed("", ratio=0.2, **changes)
    words = shlex.split(command_line(session.recipe))[1:-2]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    written = Recipe.read(tmp_path / "out" / "recipe.json")
    assert written.replace(fingerprint=session.recipe.fingerprint) == session.recipe


def test_forced_units_need_the_file(scored):
    _, session = scored
    assert "--recipe recipe.json" in command_line(session.recipe.replace(keep={MLP: (1,)}))


def test_the_facts_name_what_was_loaded(scored):
    bench, session = scored
    loaded, calibration = bench.dense(session), session.recipe.calibration
    shown = facts(loaded, calibration)
    for part in ("tiny-stories", "LlamaForCausalLM", "3.94 M", "heads a layer", "15.74 MB", "float32 on cpu", "4 x 32"):
        assert part.lower() in shown.lower()
    line = chip(loaded, calibration)
    for part in ("tiny-stories", "3.94 M", "8 × 8 heads × 512 channels", "float32 cpu", "4 × 32 own samples"):
        assert part in line


def test_the_budget_is_the_count_of_the_pruned_model(pruned):
    bench, session, name = pruned
    shown = budget_cards(bench.dense(session), bench.plan(session))
    model = bench.pruned("tests", name)
    assert f"{model.parameters:,}" in shown
    assert html.memory(model.bytes) in shown


def test_the_report_holds_what_the_tab_found(pruned):
    bench, session, name = pruned
    bench.find("tests", "Measured", pd.DataFrame({"n": [1]}), "<p>the figures</p>")
    bench.find("tests", "Numbers alone", pd.DataFrame({"n": [1]}))
    text = session_report(bench.dense(session), bench.plan(session), bench.variants("tests"), bench.findings("tests"))
    for part in ("tiny-stories", "np-heat", "the figures", name, "numprune prune", "float32", torch.__version__):
        assert part in text
    assert "Numbers alone" not in text
