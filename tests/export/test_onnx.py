"""The graph in ONNX Runtime against the model in PyTorch; the graphs are few because each takes long to trace."""

import builtins
import json
import subprocess
import sys

import pytest
import torch
from architectures import deep_model, make_tokenizer, random_ids, tiny_model

from numprune import InputError, ModuleKey, NumpruneError, generate
from numprune.export import export, formats_for
from numprune.export import onnx as module
from numprune.models.model import slice_module

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def sliced(name):
    """Other counts in every module; Llama loses the attention of its second layer."""
    model = tiny_model(name, tokenizer=make_tokenizer(), max_position_embeddings=128)
    left = [] if name.startswith("llama") else [2]
    keep = {(0, "attention"): [1, 3], (1, "attention"): left, (0, "mlp"): range(7), (1, "mlp"): range(5, 17)}
    keep = {ModuleKey(*key): sorted(units) for key, units in keep.items()}
    return model.around(slice_module(model.module, model.adapter, keep))


class Session:
    """A graph as a function of tensors, and what its inputs say of the cache."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(str(path))
        self.inputs = self.session.get_inputs()

    def empty(self, batch):
        return [torch.zeros(batch, each.shape[1], 0, each.shape[3]) for each in self.inputs[3:]]

    def __call__(self, ids, mask, positions, past):
        feed = zip(self.inputs, (ids, mask, positions, *past), strict=True)
        logits, *present = self.session.run(None, {each.name: tensor.numpy() for each, tensor in feed})
        return torch.from_numpy(logits), [torch.from_numpy(each) for each in present]


@pytest.fixture(scope="module", params=["llama-gqa-tied", "gemma3"])
def exported(request, tmp_path_factory):
    model = sliced(request.param)
    out = export(model, tmp_path_factory.mktemp("onnx") / "folder", format="onnx")
    return model, Session(out.path / module.GRAPH), out


def padded(rows=3, tokens=11):
    """Ids, a mask with padding on the left of two rows, positions; all (rows, tokens)."""
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, :4], mask[1, :1] = 0, 0
    return random_ids(rows, tokens, seed=5), mask, (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def expected_logits(model, ids, mask, positions):
    return model.module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def test_a_padded_prompt_gives_the_model_s_logits(exported):
    model, session, _ = exported
    ids, mask, positions = padded()
    found, present = session(ids, mask, positions, session.empty(3))
    expected = expected_logits(model, ids, mask, positions)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=2e-5)
    assert {tensor.shape[2] for tensor in present} == {11}
    # The padding shows: without the mask the padded rows are others.
    unmasked, _ = session(ids, torch.ones_like(mask), positions, session.empty(3))
    assert float((unmasked - found)[0, 4:].abs().max()) > 0.01


def test_token_by_token_gives_the_logits_of_the_whole(exported):
    model, session, _ = exported
    ids, mask, positions = padded()
    past, logits = session.empty(3), []
    for begin, end in ((0, 5), (5, 7), *((at, at + 1) for at in range(7, 11))):
        step, past = session(ids[:, begin:end], mask[:, :end], positions[:, begin:end], past)
        logits.append(step)
    expected = expected_logits(model, ids, mask, positions)
    torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=2e-5)


def test_the_graph_states_the_cache_of_every_layer(exported):
    model, session, out = exported
    heads = {int(each.name.split(".")[1]): each.shape[1] for each in session.inputs[3:]}
    left = {key.layer: units for key, units in model.units().items() if key.kind == "attention" and units}
    assert heads == left
    assert [each.name for each in session.inputs[:3]] == ["input_ids", "attention_mask", "position_ids"]
    assert len(session.inputs) == 3 + 2 * len(left)
    assert "auto_map" not in json.loads((out.path / "config.json").read_text())
    assert "ONNX Runtime gave the model's logits" in out.notes[0]


def test_the_snippet_writes_the_model_s_own_greedy_text_without_numprune(exported, tmp_path):
    model, _, out = exported
    script = tmp_path / "loop.py"
    blocked = "import sys\nsys.modules['numprune'] = sys.modules['torch'] = None\n"
    script.write_text(blocked + out.snippet)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=out.path.parent, check=True)
    expected = generate(model, "Once upon a time", max_new_tokens=50, temperature=0)
    assert ran.stdout.strip() == expected.strip()
    assert len(expected) > len("Once upon a time") + 20


def test_image_models_are_refused_before_anything_is_written(tmp_path):
    model = tiny_model("llamagen")
    assert "draws images" in formats_for(model)["onnx"]
    with pytest.raises(InputError, match="draws images"):
        export(model, tmp_path / "a", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs the package onnxscript; run: pip install 'numprune\[onnx\]'"):
        export(tiny_model("llama"), tmp_path / "a", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_cannot_be_traced_or_differs_leaves_nothing(tmp_path, monkeypatch):
    class Program:
        def save(self, path):
            path.write_bytes(b"graph")

    monkeypatch.setattr(module, "_trace", lambda *_: Program())
    monkeypatch.setattr(module, "_difference", lambda *_: 0.5)
    with pytest.raises(NumpruneError, match=r"differs from the model by 5\.0e-01"):
        export(tiny_model("llama"), tmp_path / "a", format="onnx")
    monkeypatch.undo()

    def untraceable(*args, **kwargs):
        raise RuntimeError("first line\nthe whole graph")

    monkeypatch.setattr(torch.onnx, "export", untraceable)
    with pytest.raises(NumpruneError, match="could not trace tiny llama") as caught:
        export(tiny_model("llama"), tmp_path / "a", format="onnx")
    assert "whole graph" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_model_keeps_its_attention_and_half_precision_is_written_in_single():
    model = tiny_model("llama", attention="sdpa")
    decoder = module.graph_of(model)
    assert decoder.module.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"
    assert decoder.module.lm_head.weight is model.module.lm_head.weight
    model.module.to(torch.bfloat16)
    decoder = module.graph_of(model)
    assert {parameter.dtype for parameter in decoder.module.parameters()} == {torch.float32}
    assert model.dtype == torch.bfloat16


def test_a_graph_of_a_model_with_fewer_layers_has_their_caches_alone(tmp_path):
    model = deep_model("gemma3", tokenizer=make_tokenizer())
    shorter = model.around(slice_module(model.module, model.adapter, {}, gone=(1,)))
    session = Session(export(shorter, tmp_path / "folder", format="onnx").path / module.GRAPH)
    ids, mask, positions = padded()
    logits, present = session(ids, mask, positions, session.empty(len(ids)))
    expected = shorter.module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=1e-3, atol=1e-4)
    assert len(present) == 2 * 3
