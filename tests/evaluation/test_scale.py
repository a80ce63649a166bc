"""What pruning takes at scale: counts against formulas, measurement against a process of known size."""

import sys

import pytest

from numprune import NumpruneError
from numprune.evaluation import scale
from numprune.evaluation.random_models import Shape

TINY = Shape(hidden=64, channels=176, layers=3, heads=4, vocabulary=2048)


def test_counts_of_7_billion_parameters_follow_from_its_shapes():
    rows = {(row["model"], row["preset"], row["road"]): row for row in scale.counted()}
    hidden, channels, layers, vocabulary = 4096, 11008, 32, 32000
    layer = 2 * (4 * hidden**2 + 3 * hidden * channels + 2 * hidden)
    whole = layers * layer + 2 * (2 * vocabulary * hidden + hidden)
    grams, square = 8 * (hidden**2 + channels**2), 8 * channels**2
    gone = 0.3 * layers * 2 * (4 * hidden**2 + 3 * hidden * channels)
    held = rows["7B", "paper", "in memory"]
    assert held["device"] == pytest.approx(2 * whole - gone + layers * grams + 4 * square, rel=1e-6)
    by_layer = rows["7B", "paper", "layer by layer"]
    # Scoring the MLP takes most: its weight twice, its moments, and four matrices of their size.
    assert by_layer["device"] == pytest.approx(10 * hidden * channels + 5 * square, rel=1e-6)
    assert by_layer["host"] == 128 * 2048 * hidden * 2
    assert by_layer["disk"] == layers * grams
    assert by_layer["fits"] == [24e9, 48e9, 80e9]
    balanced = rows["7B", "balanced", "layer by layer"]
    assert balanced["host"] == 128 * 2048 * (6 * hidden + channels) * 2
    assert balanced["disk"] == layers * grams + 33 * 32 * 2048 * hidden * 2 + 2 * 128 * 2048 * hidden * 2
    assert balanced["fits"] == [24e9, 48e9, 80e9]
    assert rows["70B", "paper", "in memory"]["fits"] == []
    assert rows["70B", "balanced", "layer by layer"]["fits"] == [48e9, 80e9]


def test_the_peak_of_a_process_is_seen(tmp_path):
    program = "import time; x = bytearray(200_000_000); time.sleep(0.3); del x; time.sleep(0.1)"
    seconds, peak = scale._watched([sys.executable, "-c", program], tmp_path / "log")
    assert 200e6 < peak < 240e6
    assert 0.4 < seconds < 10


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(NumpruneError, match=r"failed: .*no luck"):
        scale._watched([sys.executable, "-c", "raise SystemExit('no luck')"], tmp_path / "log")


@pytest.mark.parametrize("preset", ["paper", "balanced"])
def test_the_road_that_was_asked_for_is_measured(preset):
    result = scale.bench_scale(TINY, samples=2, sequence_length=32, presets=[preset], roads=["layer by layer"])
    assert [figure.name for figure in result.figures] == [
        f"{preset} layer by layer, {what}" for what in ("peak of memory", "seconds", "counted before")
    ]
    assert 0.1 < result.figures[0].median < 1
    assert result.settings["layers"] == 3
