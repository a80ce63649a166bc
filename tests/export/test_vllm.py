"""vLLM itself serves what is exported. Runs where NUMPRUNE_VLLM names a virtual environment that has it."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import serving

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif("NUMPRUNE_VLLM" not in os.environ, reason="NUMPRUNE_VLLM names no environment with vLLM"),
]


@pytest.fixture(scope="module")
def models():
    return dict(zip(("dense", "pruned"), serving.tiny(), strict=True))


@pytest.mark.parametrize(("name", "compiled"), [("dense", False), ("pruned", False), ("pruned", True)])
def test_vllm_writes_what_the_model_writes(models, tmp_path, name, compiled):
    python = Path(os.environ["NUMPRUNE_VLLM"]) / "bin" / "python"
    if name == "pruned":
        assert sorted(models["pruned"].units().values())[:2] == [0, 0]
    found = serving.compare(python, models[name], tmp_path / name, compiled=compiled)
    assert found["same tokens"]
    assert found["log-probabilities apart"] < serving.TOLERANCE
    # The last prompt is shorter than a block.
    assert [count >= 128 for count in found["tokens from the cache"]] == [True, True, True, False]
