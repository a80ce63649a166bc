"""Ours beside the paper's, on cells written by hand."""

import math
from dataclasses import replace

import pytest
import torch
from architectures import tiny_model
from cells import DENSE

from numprune.evaluation.images.features import Features
from numprune.evaluation.images.inception import INCEPTION
from numprune.evaluation.paper import LLAMA_7B, LLAMAGEN_3B, LLAMAS, PROTOCOLS
from numprune.evaluation.reproduction import (
    Resized,
    beside,
    curves_for,
    deviations,
    other_ratios,
    paper_curves,
    paper_model,
)

CELL = replace(DENSE, tokens=10, nll=1.7, perplexity=5.5, data="wikitext2")
PRUNED = replace(CELL, method="flap", ratio=0.2, reached=0.199, parameters=80, seconds=3.0, perplexity=7.0)
DRAWN = {"perplexity": None, "data": None, "fid": 2.5, "sfid": 6.0, "inception_score": 250.0, "precision": 0.8}


def test_ours_stands_beside_the_paper_with_the_difference():
    table = beside([CELL, PRUNED], LLAMA_7B).set_index(["method", "ratio", "measure"])
    dense = table.loc["dense", 0.0, "wikitext2"]
    assert (dense["ours"], dense["paper"], dense["difference"]) == (5.5, 5.68, 5.5 - 5.68)
    flap = table.loc["flap", 0.2, "wikitext2"]
    assert (flap["ours"], flap["paper"], flap["parameters"], flap["reached"]) == (7.0, 7.40, 80, 0.199)
    assert flap["difference"] == pytest.approx(-0.4)


def test_the_papers_rows_are_there_where_ours_are_not():
    table = beside([CELL, PRUNED], LLAMA_7B).set_index(["method", "ratio"])
    assert set(table.index) == {("dense", 0.0), *((name, 0.2) for name in ("flap", "paper", "slicegpt", "taylor"))}
    row = table.loc["slicegpt", 0.2]
    assert row["paper"] == 8.42
    assert math.isnan(row["ours"])
    assert math.isnan(row["difference"])


@pytest.mark.parametrize(
    ("cells", "paper"),
    [
        ([CELL, PRUNED], None),
        ([replace(CELL, data="stories.txt"), replace(PRUNED, data="stories.txt")], LLAMA_7B),
        ([replace(CELL, method="best", ratio=0.2)], LLAMA_7B),
        ([replace(CELL, method="flap", ratio=0.25)], LLAMA_7B),
        ([replace(CELL, **DRAWN, extractor="a-judge")], LLAMAGEN_3B),
    ],
)
def test_figures_the_paper_does_not_have_are_none(cells, paper):
    table = beside(cells, paper)
    ours = table[table["ours"].notna()]
    assert len(ours) >= len(cells)
    assert ours["paper"].isna().all()
    assert ours["difference"].isna().all()


def test_images_that_inception_saw_are_compared():
    table = beside([replace(CELL, **DRAWN, extractor=INCEPTION)], LLAMAGEN_3B).set_index("measure")
    assert list(table.index) == ["fid", "sfid", "is", "precision"]
    assert table.loc["fid", "difference"] == pytest.approx(2.5 - 2.26)
    assert table.loc["is", "paper"] == 260.46
    assert table.loc["precision", "difference"] == pytest.approx(0.8 - 0.8207)


def test_curves_are_the_excess_loss_over_the_papers_dense_model():
    curves = paper_curves(LLAMA_7B, "c4")
    (row,) = curves[(curves["method"] == "flap") & (curves["ratio"] == 0.5)].itertuples()
    assert row.measure == pytest.approx(math.log(30.86 / 7.08))
    assert row.label == "FLAP, paper"
    assert len(curves) == 4 * 5
    fid = paper_curves(LLAMAGEN_3B, "fid")
    assert set(fid[fid["method"] == "paper"]["measure"]) == {3.97, 8.92, 20.16}
    assert paper_curves(LLAMA_7B, "another").empty


def test_a_model_of_the_tables_has_curves_and_others_have_none(model, stats):
    assert curves_for(model, "wikitext2") is None
    for key, value in LLAMA_7B.config.items():
        if key != "model_type":
            setattr(model.config, key, value)
    assert paper_model(model, LLAMAS) is LLAMA_7B
    for data, text in (("ptb", "ptb"), ("stories.txt", "wikitext2"), (None, "wikitext2"), (["a text"], "wikitext2")):
        known, found, curves = curves_for(model, data)
        assert (known, found) == (LLAMA_7B, text)
        assert curves.equals(paper_curves(LLAMA_7B, text))
    model.recipe = object()
    assert curves_for(model, "wikitext2") is None
    assert curves_for(tiny_model("llamagen"), None) is None


def test_what_differs_from_the_paper_is_named():
    table = PROTOCOLS["table1"]
    assert deviations(table, calibration="wikitext2", samples=128, sequence_length=2048) == []
    assert deviations(table, calibration="self", samples=8, sequence_length=64) == [
        "calibration self instead of wikitext2",
        "8 calibration samples instead of 128",
        "64 tokens per window instead of 2,048",
    ]
    assert deviations(PROTOCOLS["table3"], images=1000) == ["1,000 images drawn instead of 50,000"]
    assert other_ratios(table, [0.1, 0.4, 0.45]) == ["table 1 has no ratio 0.4, 0.45"]
    assert other_ratios(table, [0.1, 0.7]) == []


def test_images_are_seen_at_the_size_of_the_reference():
    seen = []

    class Extractor:
        name = INCEPTION

        def __call__(self, images):
            seen.append(images)
            return Features(images.mean((2, 3)), None, None)

    resized = Resized(Extractor())
    images = torch.rand(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    resized(images)
    assert resized.name == INCEPTION
    assert seen[0].shape == (2, 3, 256, 256)
    assert 0 <= float(seen[0].min()) <= float(seen[0].max()) <= 1
    # Keys' cubic with a = -0.75 between the pixels 1.5 times as far apart: output 1 lies at input 1.75.
    weights = torch.tensor([_cubic(1.75 - at) for at in (0, 1, 2, 3)])
    expected = weights @ images[0, 0, :4, :4] @ weights
    assert float(seen[0][0, 0, 1, 1]) == pytest.approx(float(expected.clamp(0, 1)), abs=1e-5)


def _cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0
