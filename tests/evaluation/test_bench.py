import pytest
import torch

from numprune import InputError
from numprune.evaluation import costs, memory
from numprune.evaluation.benchmark import Figure
from numprune.evaluation.costs import (
    bench_calibrate,
    bench_eliminate,
    bench_images,
    bench_prune,
    bench_score,
    bench_speed,
)
from numprune.evaluation.random_models import Shape, random_llama

TINY = Shape(hidden=32, channels=48, layers=1, heads=2, vocabulary=64)


def check(benchmark, device="cpu"):
    """What every benchmark promises; returns its figures by name."""
    assert benchmark.device.startswith(device)
    assert benchmark.dtype
    assert benchmark.to_dict()["figures"]
    for figure in benchmark.figures:
        assert figure.n >= 1
        assert figure.min <= figure.median <= figure.max
    return {figure.name: figure for figure in benchmark.figures}


def test_figure_is_median_and_range():
    assert Figure.of("time", "s", [3.0, 1.0, 2.0], "< 4") == Figure("time", "s", 3, 2.0, 1.0, 3.0, "< 4")


def test_score_times_the_whole_loop():
    figures = check(bench_score(48, out_features=16, device="cpu", repetitions=3))
    assert figures["closed form / Cholesky"].n == 3
    assert figures["loop, 50 steps"].n == 1
    assert figures["max |z closed - z loop|"].max <= 1e-6
    assert not any("extrapolated" in name for name in figures)


def test_score_extrapolates_a_shortened_loop_and_says_so(monkeypatch):
    seconds = iter([2.0, 5.0, 2.0, 5.0, 2.0, 5.0, 11.0])  # Cholesky and closed form alternately, then the loop

    def timed(work, device):
        work()
        return next(seconds)

    monkeypatch.setattr(costs, "timed", timed)
    figures = check(bench_score(16, out_features=8, device="cpu", repetitions=3, loop_steps=2))
    assert figures["closed form / Cholesky"].median == 2.5
    assert figures["loop, 2 steps, measured"].median == 11.0
    # 5 s of set-up and 3 s a step
    assert figures["loop, 50 steps, extrapolated from 2"].median == 5 + 50 * 3
    assert figures["loop, 50 steps, extrapolated from 2 / closed form"].median == 31.0


def test_usual_loop_steps_are_the_papers_unless_it_takes_minutes():
    assert costs.usual_loop_steps(4096, "cpu") == 50
    assert costs.usual_loop_steps(11008, "cpu") < 50


def test_elimination_is_measured_over_a_factorisation():
    figures = check(bench_eliminate(80, out_features=16, device="cpu", repetitions=3))
    assert [*figures] == ["eliminate", "bare Cholesky", "eliminate / Cholesky"]
    assert figures["eliminate / Cholesky"].aim == "<= 12"


def test_calibrate_is_measured_over_forward():
    figures = check(bench_calibrate(TINY, samples=4, sequence_length=16, batch_size=2, device="cpu", repetitions=2))
    assert figures["calibrate / forward"].n == 2
    assert figures["calibrate"].min > 0


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux")
def test_prune_memory_holds_at_least_the_pruned_weights():
    shape = Shape(hidden=256, channels=1024, layers=2, heads=8, vocabulary=64)
    figures = check(bench_prune(shape, device="cpu", repetitions=1))
    assert figures["growth"].median > 0.9 * figures["pruned weights"].median
    assert figures["Gram matrices"].median == 2 * 8 * (256**2 + 1024**2)
    expected = 1 + figures["growth"].median / figures["weights"].median
    assert figures["weights + growth / weights"].median == pytest.approx(expected)


def test_prune_memory_that_cannot_be_known_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "missing")
    benchmark = bench_prune(TINY, device="cpu")
    assert benchmark.figures == []
    assert "not known" in benchmark.notes[0]


def test_speed_stands_beside_what_the_parameters_promise():
    benchmark = bench_speed(TINY, new_tokens=2, prompt_tokens=4, device="cpu", repetitions=1)
    figures = check(benchmark)
    read = [benchmark.settings[f"parameters_{name}"] - 32 * 64 for name in ("dense", "pruned")]
    for phase in ("prefill", "decode"):
        assert figures[f"dense {phase}"].unit == "tokens/s"
        assert figures[f"{phase}, pruned / dense"].aim == f"promised {read[0] / read[1]:.2f}"
    for model in ("dense", "pruned"):
        assert figures[f"{model} first token"].unit == "s"
        assert figures[f"{model} first token"].median == pytest.approx(4 / figures[f"{model} prefill"].median)


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux")
def test_speed_tells_the_peak_memory():
    shape = Shape(hidden=256, channels=2048, layers=4, heads=4, vocabulary=64)
    benchmark = bench_speed(shape, new_tokens=2, prompt_tokens=4, device="cpu", repetitions=1)
    figures = check(benchmark)
    for model in ("dense", "pruned"):
        assert figures[f"{model} peak memory"].unit == "bytes"
        assert figures[f"{model} peak memory"].min >= 4 * benchmark.settings[f"parameters_{model}"]
    assert figures["peak memory, pruned / dense"].max < 1


def test_speed_without_a_known_memory_has_no_figure_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "missing")
    figures = check(bench_speed(TINY, new_tokens=2, prompt_tokens=4, device="cpu", repetitions=1))
    assert not any("memory" in name for name in figures)


def test_progress_is_told():
    calls = []
    bench_calibrate(
        TINY, samples=2, sequence_length=8, device="cpu", repetitions=1, progress=lambda *a: calls.append(a)
    )
    assert calls[-1] == (2, 2, "calibrating")


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(InputError, match="3 heads"):
        bench_calibrate(Shape(hidden=32, heads=3), device="cpu")


def test_random_model_leaves_the_callers_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    random_llama(TINY, device="cpu")
    assert torch.rand(1) == expected


@pytest.mark.cuda
def test_everything_runs_on_cuda():
    for benchmark in (
        bench_score(64, out_features=32, device="cuda", repetitions=2),
        bench_calibrate(TINY, samples=2, sequence_length=16, device="cuda", repetitions=2),
        bench_prune(TINY, device="cuda", repetitions=2),
        bench_speed(TINY, new_tokens=2, prompt_tokens=4, device="cuda", repetitions=2),
    ):
        check(benchmark, "cuda")


def test_images_are_timed_over_bare_forwards_over_one_and_over_dense():
    benchmark = bench_images(TINY, grid=3, batch=4, device="cpu", repetitions=2)
    figures = check(benchmark)
    for name in ("generate / bare forwards", "images/s, batch 4 / batch 1", "images/s, pruned / dense"):
        assert figures[name].n == 2
        assert figures[name].aim
    dense, pruned = (benchmark.settings[f"parameters_{name}"] for name in ("dense", "pruned"))
    assert pruned < dense
