"""vLLM itself serves what is exported, where NUMPRUNE_VLLM names a virtual environment that has it; and its plugin."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import numprune
import numprune.vllm as plugin

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import serving

from numprune.vllm import ARCHITECTURES

needs_vllm = pytest.mark.skipif(
    "NUMPRUNE_VLLM" not in os.environ, reason="NUMPRUNE_VLLM names no environment with vLLM"
)


@pytest.fixture(scope="module")
def python():
    return Path(os.environ["NUMPRUNE_VLLM"]) / "bin" / "python"


@pytest.fixture(scope="module")
def models():
    return dict(zip(("dense", "pruned"), serving.tiny(), strict=True))


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize(("name", "compiled"), [("dense", False), ("pruned", False), ("pruned", True)])
def test_vllm_writes_what_the_model_writes(python, models, tmp_path, name, compiled):
    if name == "pruned":
        assert sorted(models["pruned"].units().values())[:2] == [0, 0]
    found = serving.compare(python, models[name], tmp_path / name, compiled=compiled)
    agrees(found)
    assert name == "dense" or found["runs as"] == "TransformersForCausalLM"


def agrees(found):
    assert found["same tokens"]
    assert found["log-probabilities apart"] < serving.TOLERANCE
    # The last prompt is shorter than a block.
    assert [count >= 128 for count in found["tokens from the cache"]] == [True, True, True, False]


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize(
    ("architecture", "compensation"),
    [("llama", "paper"), ("llama", "bias"), ("mistral", "paper"), ("qwen2", "bias"), ("qwen3", "paper")],
)
def test_the_plugin_writes_the_same_by_layers_of_vllm(python, tmp_path, architecture, compensation):
    """Found by its entry point, with layers of their own sizes, biases of compensation, and no remote code."""
    _, pruned = serving.tiny(architecture, compensation=compensation)
    (packages := tmp_path / "packages").mkdir()
    serving.install_plugin(packages)
    found = serving.compare(python, pruned, tmp_path / "pruned", compiled=False, packages=packages)
    agrees(found)
    assert found["runs as"] == pruned_name(pruned)
    biases = json.loads((tmp_path / "pruned" / "config.json").read_text()).get("output_biases", {})
    assert bool(biases.get("attention") and biases.get("mlp")) == (compensation == "bias")


@pytest.mark.vllm
@needs_vllm
def test_the_plugin_compiles(python, models, tmp_path):
    (packages := tmp_path / "packages").mkdir()
    serving.install_plugin(packages)
    agrees(serving.compare(python, models["pruned"], tmp_path / "pruned", compiled=True, packages=packages))


def pruned_name(model):
    return f"Pruned{model.architecture}"


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_an_export_is_called_what_the_plugin_registers(tmp_path, architecture):
    _, pruned = serving.tiny(architecture)
    numprune.export(pruned, tmp_path / "pruned")
    (name,) = json.loads((tmp_path / "pruned" / "config.json").read_text())["architectures"]
    assert name == pruned_name(pruned)
    assert name in ARCHITECTURES


def test_every_registered_class_is_there(monkeypatch):
    """The file of the classes can only be imported where vLLM is."""
    registered = {}
    registry = SimpleNamespace(register_model=registered.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    plugin.register()
    tree = ast.parse(Path(plugin.__file__).with_name("layers.py").read_text())
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert registered == {name: f"numprune.vllm.layers:{runner}" for name, runner in ARCHITECTURES.items()}
    assert set(ARCHITECTURES.values()) <= classes


def test_the_plugin_needs_nothing_of_numprune():
    """vLLM wants other versions of what numprune stands on."""
    code = "import sys, numprune.vllm; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "safetensors"} & set(done.stdout.split())


def test_the_entry_point_names_the_function():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((_, at),) = project["entry-points"][serving.PLUGINS].items()
    module, _, function = at.partition(":")
    assert getattr(import_module(module), function) is plugin.register
