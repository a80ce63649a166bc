"""Methods side by side, against the steps they consist of."""

import math
import time
from itertools import islice

import pytest
import torch
from architectures import random_ids, tiny_model, with_recipe

import numprune
from numprune import METHODS, CalibrationRecipe, Cancelled, InputError, Recipe, compare_methods
from numprune.evaluation.cells import DENSE, read_cells, summary, write_cells
from numprune.evaluation.images.features import METRICS
from numprune.evaluation.images.judge import panel_of
from numprune.evaluation.images.quality import image_quality
from numprune.evaluation.measurement import Bench
from numprune.evaluation.methods import Shared, pruned_by

BENCH = Bench(data=random_ids(3, 12, seed=5), sequence_length=12)


@pytest.fixture
def recipe(tmp_path):
    text = tmp_path / "calibration.txt"
    text.write_text("the cat sat on the mat . the dog ran to the cat . " * 40)
    return Recipe(calibration=CalibrationRecipe(data=str(text), samples=4, sequence_length=16))


def test_cells_are_those_of_the_single_steps(model, recipe):
    cells = list(compare_methods(model, ["paper", "wanda_sp"], [0.3], BENCH, recipe=recipe, seeds=[1]))
    dense, paper, wanda = cells
    assert (dense.method, dense.ratio, dense.parameters, dense.kl) == (DENSE, 0, model.parameters, 0)
    stats = numprune.calibrate(model, recipe.calibration.data, samples=4, sequence_length=16, seed=1)
    for cell, settings in (
        (paper, {}),
        (wanda, {"scorer": "wanda_sp", "allocation": "uniform", "compensation": "none"}),
    ):
        chosen = Recipe(ratio=0.3, **settings)
        scores = numprune.score(model, stats, scorer=chosen.scorer)
        plan = numprune.allocate(scores, chosen)
        pruned = numprune.prune(model, with_recipe(plan, compensation=chosen.compensation), stats)
        loss = numprune.perplexity(pruned, BENCH.data, sequence_length=12)
        assert cell.configuration == (cell.method, 0.3, 1)
        assert (cell.nll, cell.tokens) == (loss.nll, loss.tokens)
        assert cell.kl == numprune.divergence(model, pruned, BENCH.data, sequence_length=12).mean_kl
        assert (cell.parameters, cell.reached) == (pruned.parameters, plan.ratio_reached)
        assert cell.decode is None


@pytest.mark.parametrize("method", [name for name in METHODS if name != "fast"])
def test_every_method_reaches_the_ratio(model, stats, method):
    pruned = pruned_by(model, stats, method, Recipe(ratio=0.4))
    # Of two layers and their four modules, so many come nearest to the ratio.
    reached = {"shortgpt": 0.5, "drop": 0.5}.get(method, 0.4)
    assert pruned.reached == pytest.approx(reached, abs=0.15 if method == "drop" else 0.05)
    assert pruned.model.parameters < model.parameters
    assert (pruned.model.recipe.healing > 0) == (method == "healed")


def test_only_missing_cells_are_measured(model, recipe, tmp_path):
    file = tmp_path / "cells.csv"
    arguments = (model, ["magnitude", "random"], [0.2, 0.5], BENCH)
    whole = list(compare_methods(*arguments, recipe=recipe, seeds=[0, 1]))
    assert len(whole) == 1 + 2 * 2 * 2
    write_cells(file, whole[:4])
    assert read_cells(file) == whole[:4]
    rest = list(compare_methods(*arguments, recipe=recipe, seeds=[0, 1], done=read_cells(file)))
    assert [(cell.configuration, cell.nll) for cell in rest] == [(cell.configuration, cell.nll) for cell in whole[4:]]


def test_a_file_may_move_but_not_change(model, recipe, tmp_path):
    cells = list(compare_methods(model, ["random"], [0.2], BENCH, recipe=recipe))
    text = (tmp_path / "calibration.txt").read_text()
    for name, content in (("moved.txt", text), ("changed.txt", text + "the end .")):
        (tmp_path / name).write_text(content)
        source = CalibrationRecipe(data=str(tmp_path / name), samples=4, sequence_length=16)
        again = recipe.replace(calibration=source)
        if name == "moved.txt":
            assert list(compare_methods(model, ["random"], [0.2], BENCH, recipe=again, done=cells)) == []
        else:
            with pytest.raises(InputError, match="another model, calibration"):
                compare_methods(model, ["random"], [0.2], BENCH, recipe=again, done=cells)


def test_cells_of_another_run_are_refused(model, recipe):
    cells = list(compare_methods(model, ["random"], [0.2], BENCH, recipe=recipe))
    other = Bench(data=BENCH.data, sequence_length=8)
    for changes in (
        {"bench": other},
        {"recipe": recipe.replace(damping=0.1)},
        {"model": tiny_model("llama-gqa-tied", tokenizer=model.tokenizer, seed=3)},
    ):
        given = {"model": model, "bench": BENCH, "recipe": recipe, **changes}
        with pytest.raises(InputError, match="write to another file"):
            compare_methods(given["model"], ["random"], [0.2], given["bench"], recipe=given["recipe"], done=cells)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["no-such"]}, "preset 'no-such' is not known"),
        ({"methods": []}, "at least one method"),
        ({"ratios": [0.0]}, "one ratio above 0"),
        ({"seeds": []}, "one seed"),
        ({"bench": Bench()}, "no held-out text"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(model, recipe, changes, says):
    given = {"methods": ["paper"], "ratios": [0.3], "bench": BENCH, "seeds": [0], **changes}
    with pytest.raises(InputError, match=says):
        compare_methods(model, given.pop("methods"), given.pop("ratios"), given.pop("bench"), recipe=recipe, **given)


def test_a_stop_ends_between_cells(model, recipe):
    class Event:
        def __init__(self):
            self.set = False

        def is_set(self):
            return self.set

    event = Event()
    cells = compare_methods(model, ["random", "magnitude"], [0.2], BENCH, recipe=recipe, cancel=event)
    assert len(list(islice(cells, 2))) == 2
    event.set = True
    with pytest.raises(Cancelled):
        next(cells)


def test_summary_takes_mean_and_range_over_seeds(model, recipe):
    cells = list(compare_methods(model, ["random"], [0.5], BENCH, recipe=recipe, seeds=[0, 1, 2]))
    (row,) = summary(cells).itertuples()
    losses = [math.log(cell.perplexity) - math.log(cells[0].perplexity) for cell in cells[1:]]
    assert row.seeds == 3
    assert row.measure == pytest.approx(sum(losses) / 3)
    assert (row.lowest, row.highest) == (pytest.approx(min(losses)), pytest.approx(max(losses)))
    assert math.isnan(row.decode)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="was not written by"):
        read_cells(path)
    assert read_cells(tmp_path / "none.csv") == []


def test_several_benches_measure_the_same_pruned_model(model, recipe, tmp_path):
    other = Bench(data=random_ids(2, 12, seed=6), sequence_length=12)
    both = list(compare_methods(model, ["paper"], [0.3], [BENCH, other], recipe=recipe))
    assert [cell.method for cell in both] == [DENSE, DENSE, "paper", "paper"]
    for bench, cells in ((BENCH, both[0::2]), (other, both[1::2])):
        alone = list(compare_methods(model, ["paper"], [0.3], bench, recipe=recipe))
        assert [(cell.run, cell.configuration, cell.nll, cell.kl) for cell in cells] == [
            (cell.run, cell.configuration, cell.nll, cell.kl) for cell in alone
        ]
    # What one of them has already is not measured again.
    rest = list(compare_methods(model, ["paper"], [0.3], [BENCH, other], recipe=recipe, done=both[:3]))
    assert [(cell.run, cell.nll) for cell in rest] == [(both[3].run, both[3].nll)]
    write_cells(tmp_path / "cells.csv", both)
    assert read_cells(tmp_path / "cells.csv") == both
    assert {cell.data for cell in both} == {"tokens"}


def test_cells_written_before_a_column_existed_are_read(model, recipe, tmp_path):
    cells = list(compare_methods(model, ["random"], [0.2], BENCH, recipe=recipe))
    file = tmp_path / "cells.csv"
    write_cells(file, cells)
    later = ["data", "extractor", "sfid", "inception_score", "precision", "recall", "peak_bytes"]
    rows = [line.rsplit(",", len(later)) for line in file.read_text().splitlines()]
    assert rows[0][1:] == later
    file.write_text("".join(f"{row[0]}\n" for row in rows))
    assert [cell.nll for cell in read_cells(file)] == [cell.nll for cell in cells]
    assert read_cells(file)[0].data is None


def test_images_are_measured_with_the_extractor_of_the_bench(images_folder):
    images = numprune.load(images_folder, device="cpu")
    panel = panel_of(images)

    class Named:
        name = panel.name

        def __call__(self, batch):
            return panel(batch)

    bench = Bench(images=8, drawing={"cfg_scale": 1.0}, extractor=Named(), reference=panel.reference, metrics=METRICS)
    settings = Recipe(calibration=CalibrationRecipe("self", samples=4))
    dense, _ = compare_methods(images, ["magnitude"], [0.4], bench, recipe=settings)
    found = image_quality(images, 8, panel, panel.reference, METRICS, cfg_scale=1.0).metrics
    columns = (dense.fid, dense.sfid, dense.inception_score, dense.precision, dense.recall)
    assert columns == pytest.approx(tuple(found.values[metric] for metric in METRICS), rel=1e-6)
    assert (dense.extractor, dense.recognised, dense.data) == (panel.name, None, None)
    with pytest.raises(InputError, match="write to another file"):
        compare_methods(images, ["magnitude"], [0.4], Bench(images=8), recipe=settings, done=[dense])


def test_what_methods_share_is_made_once_and_its_seconds_count_for_each():
    shared, made = Shared(torch.device("cpu")), []

    def make():
        made.append(0)
        time.sleep(0.05)
        return len(made)

    assert [shared.get("scores", "newton", make) for _ in range(3)] == [1, 1, 1]
    assert shared.get("scores", "flap", make) == 2
    assert 0.1 <= shared.saved < 0.5


def test_sharing_changes_no_pruned_model(model, stats):
    shared, recipe = Shared(model.device), Recipe(ratio=0.3)
    alone = pruned_by(model, stats, "best", recipe)
    pruned_by(model, stats, "balanced", recipe, shared=shared)
    pruned_by(model, stats, "best", recipe.replace(ratio=0.5), shared=shared)
    together = pruned_by(model, stats, "best", recipe, shared=shared)
    assert together.reached == alone.reached
    assert together.seconds >= shared.saved > 0
    state = alone.model.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in together.model.module.state_dict().items())
