import numpy as np
import pytest
from charts import causal, curves, report, rows, swept

from numprune.ui.figures import divergence_chart, error_bars, sweep_chart
from numprune.ui.score_figures import attention_pattern, layer_profile, layer_row, ratio_bars, score_distribution


def every_figure(layers=32, channels=11008):
    """All charts, of a large model."""
    heads, mlp = rows(*[32] * layers), rows(*[channels] * layers)
    pruned = np.arange(channels) % 3 == 0
    return {
        "score_distribution": score_distribution(np.concatenate(heads), np.concatenate(mlp), 0.8),
        "layer_profile": layer_profile(heads, mlp),
        "layer_row": layer_row(mlp[0], pruned, 5, "channel"),
        "ratio_bars": ratio_bars([0.3] * layers, [0.5] * layers, [True] * layers, [False] * layers),
        "error_bars": error_bars(report()),
        "divergence_chart": divergence_chart([" token"] * 1024, curves(1024, "abc")),
        "sweep_chart": sweep_chart(swept()),
        "attention_pattern": attention_pattern([" token"] * 48, causal(8, 48), ["head"] * 8),
    }


@pytest.fixture(scope="module")
def figures():
    return every_figure()


def test_backgrounds_are_transparent_and_heights_set(figures):
    for figure in figures.values():
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert 200 <= figure.layout.height <= 1600
        assert figure.layout.title.text is None


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("score_distribution", 16_000),
        ("layer_profile", 16_000),
        ("layer_row", 250_000),
        ("ratio_bars", 16_000),
        ("divergence_chart", 150_000),
        ("sweep_chart", 16_000),
        ("attention_pattern", 150_000),
    ],
)
def test_the_picture_of_a_large_model_is_small(figures, name, limit):
    assert len(figures[name].to_json()) < limit


def test_numbers_travel_as_float32_arrays(figures):
    def check(value, where):
        if isinstance(value, dict):
            for name, part in value.items():
                check(part, f"{where}.{name}")
        elif isinstance(value, np.ndarray) and value.dtype != object:
            assert value.dtype == np.float32, where
        elif isinstance(value, list | tuple | np.ndarray):
            assert not any(isinstance(part, float) for part in value), where

    for name, figure in figures.items():
        for trace in figure.to_plotly_json()["data"]:
            check(trace, name)
