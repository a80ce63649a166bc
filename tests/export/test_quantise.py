"""The documented recipe for 8 and 4 bit, run as it is printed there."""

import re
from pathlib import Path

import pytest

import numprune
from numprune import Recipe, allocate, calibrate, load, perplexity, prune, score
from numprune.export import export

functional = pytest.importorskip("bitsandbytes.functional")

# On CPUs with AVX512-BF16, bitsandbytes takes 4 bit weights in blocks of 32 x 64 only.
BLOCKS = {"round_heads": 8, "round_channels": 64}


def test_the_documented_recipe_quantises_a_pruned_export(tmp_path, monkeypatch, capsys):
    section = (Path(__file__).parents[2] / "docs/export.md").read_text().split("### Quantised")[1]
    recipe = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    model = load("tiny-stories", device="cpu")
    stats = calibrate(model, "self", samples=8, sequence_length=64)
    wanted = Recipe(ratio=0.3, **(BLOCKS if functional.has_avx512bf16() else {}))
    pruned = prune(model, allocate(score(model, stats), wanted), stats)
    assert len(set(pruned.units().values())) > 2
    export(pruned, tmp_path / "smaller-hf", format="transformers")
    texts = [
        "Once upon a time there was a little dog who lived in a red house. One day he went to the park to play.",
        "Lily had a big ball. She liked to run and jump with it. Her mom said that it was time to go home.",
    ]
    monkeypatch.setattr(numprune, "held_out_text", lambda: texts)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(recipe, {})
    (eight, eight_bytes), (four, four_bytes) = (
        map(float, line.split()) for line in capsys.readouterr().out.splitlines()
    )
    whole = perplexity(pruned, texts)
    # Rounding shows, more in 4 bit than in 8, and costs little.
    assert 0 < abs(eight / whole - 1) < abs(four / whole - 1) < 0.2
    assert four_bytes < eight_bytes < pruned.bytes
