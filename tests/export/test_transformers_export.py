"""The export is opened by a program that cannot import numprune, and computes to the bit what the model does."""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    deep_model,
    make_tokenizer,
    random_ids,
    random_scores,
    tiny_model,
    with_recipe,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from numprune import (
    Cancelled,
    InputError,
    LoadError,
    NumpruneError,
    Recipe,
    allocate,
    calibrate,
    export,
    load,
    prune,
    score,
)
from numprune.export.engines import vllm_notes
from numprune.models.written import write_module

STOCK = [name for name in ARCHITECTURES if not name.startswith("llamagen")]
# Unequal cuts with a bias for what went, and a layer without attention before one without MLP.
PLANS = {
    "uneven": ({"prune": {"0.mlp": (1, 3, 23), "1.mlp": tuple(range(20)), "1.attention": (0,)}}, "bias"),
    "emptied": ({"ratios": {"0.attention": 0.99, "1.mlp": 0.99}, "allow_empty": True}, "none"),
    "shorter": ({"drop": ["1", "2.mlp"]}, "none"),
    "emptied, with biases": ({"ratios": {"0.attention": 0.99, "1.mlp": 0.99}, "allow_empty": True}, "bias"),
}
CASES = [(name, "uneven") for name in STOCK]
CASES += [(name, "emptied") for name in STOCK if name not in ("janus", "emu3")]
CASES += [(name, "shorter") for name in STOCK if name not in ("janus", "emu3")]
CASES += [(name, "emptied, with biases") for name in ("llama", "llama-biases", "gpt-neox-parallel", "opt")]
ALL = pytest.mark.parametrize(("name", "plan"), CASES)


@cache
def pruned(name, plan):
    settings, compensation = PLANS[plan]
    if plan == "shorter":
        model = deep_model(name, layers=3, tokenizer=make_tokenizer())
    else:
        model = tiny_model(name, tokenizer=make_tokenizer())
    if plan == "uneven" and model.blocks[0].units == 1:  # all heads are one unit, which stays
        settings = {"prune": {key: units for key, units in settings["prune"].items() if "mlp" in key}}
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    return prune(
        model,
        with_recipe(allocate(random_scores(model), Recipe(ratio=0.0, **settings)), compensation=compensation),
        stats,
    )


def logits(model):
    ids = random_ids(2, 12, seed=7)
    return model.module(input_ids=ids, use_cache=False).logits


def expected_of(model):
    """Logits of a batch padded on the left, and ten tokens after it, as the model itself has them."""
    ids = random_ids(2, 12, seed=7)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    inputs = {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
    found = {"ids": inputs["input_ids"], "mask": mask}
    module, usual = model.module, model.config._attn_implementation
    found["written"] = module.generate(**inputs, max_new_tokens=10, do_sample=False, pad_token_id=1)
    for attention in ("eager",) if usual == "eager" else ("eager", "sdpa"):
        module.set_attn_implementation(attention)
        found[f"logits {attention}"] = module(**inputs, use_cache=False).logits.clone()
    module.set_attn_implementation(usual)
    return found


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder of the exports of all cases."""
    folder = tmp_path_factory.mktemp("exports")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, plan in CASES:
        target = folder / f"{name} {plan}"
        export(pruned(name, plan), target)
        save_file(expected_of(pruned(name, plan)), target / "expected.safetensors")
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def seen(exports, tmp_path_factory):
    """What a program without numprune saw of them."""
    program = Path(__file__).with_name("stranger.py")
    home = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", str(program), str(exports)]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((exports / "seen.json").read_text())


def test_the_program_that_opens_the_exports_cannot_import_numprune(seen):
    assert seen["numprune"] == {"blocked": True, "imported": False}


def test_heads_an_engine_does_not_take_are_named(tmp_path):
    (note,) = vllm_notes(tiny_model("llama"))
    assert note == (
        "Heads are 8 wide; vLLM on a CPU takes 32, 64, 80, 96, 112, 128, 160, 192, 224, 256 and 512, GPUs take others."
    )
    assert note in export(pruned("llama", "uneven"), tmp_path / "uneven").notes
    assert note in export(tiny_model("llama"), tmp_path / "dense").notes
    assert vllm_notes(tiny_model("llama", head_dim=32)) == []


@ALL
def test_opens_without_numprune_and_computes_the_same_bits(seen, name, plan):
    model = pruned(name, plan)
    found = dict(seen[f"{name} {plan}"])
    assert found.pop("class") == f"Pruned{model.architecture}"
    assert found.pop("code") == f"modeling_pruned_{model.config.model_type}.py"
    wrong = [what for what, fine in found.items() if fine is not True]
    assert wrong == []


@ALL
def test_opens_here_with_its_shapes_and_history(exports, name, plan):
    model, opened = pruned(name, plan), load(exports / f"{name} {plan}", device="cpu")
    assert opened.units() == model.units()
    assert opened.fingerprint() == model.fingerprint()
    assert torch.equal(logits(opened), logits(model))
    assert (opened.recipe, opened.report) == (model.recipe, model.report)
    assert type(opened.module) is type(model.module)
    assert "per_layer_config" not in opened.config.to_dict()


@ALL
def test_opens_here_when_transformers_saved_it_again(exports, seen, name, plan):
    folder = exports / f"{name} {plan}"
    again = exports / f"{name} {plan} again"
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, again)
    assert torch.equal(logits(load(again, device="cpu")), logits(pruned(name, plan)))


def test_what_was_opened_can_be_pruned_and_saved_again(exports, tmp_path):
    opened = load(exports / "mistral uneven", device="cpu")
    stats = calibrate(opened, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    smaller = prune(opened, allocate(score(opened, stats), Recipe(ratio=0.3)), stats)
    smaller.save(tmp_path / "saved")
    export(smaller, tmp_path / "exported")
    for folder in ("saved", "exported"):
        loaded = load(tmp_path / folder, device="cpu")
        assert loaded.units() == smaller.units()
        assert torch.equal(logits(loaded), logits(smaller))


def test_opens_from_the_hub(exports, tmp_path, monkeypatch):
    """A cache as the hub's client leaves it stands for the hub."""
    repository = tmp_path / "models--ada--smaller"
    revision = "0" * 40
    shutil.copytree(exports / "qwen2 uneven", repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load("ada/smaller", device="cpu")
    assert torch.equal(logits(model), logits(pruned("qwen2", "uneven")))


@pytest.mark.parametrize("name", STOCK)
def test_a_dense_model_needs_no_custom_code(name, tmp_path):
    model = tiny_model(name, tokenizer=make_tokenizer())
    written = export(model, tmp_path / "dense")
    assert "without custom code" in written.notes[0]
    assert "trust_remote_code" not in written.snippet
    assert not list(written.path.glob("*.py"))
    opened = model.adapter.auto_class.from_pretrained(written.path)
    assert torch.equal(opened(input_ids=random_ids(2, 12, seed=7), use_cache=False).logits, logits(model))


def test_the_snippet_runs(exports, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    written = export(pruned("gemma", "uneven"), tmp_path / "gemma")
    names = {}
    exec(written.snippet, names)
    assert type(names["model"]).__name__ == "PrunedGemmaForCausalLM"
    assert names["tokenizer"]("the and")["input_ids"]


def test_tokenizer_chat_template_and_generation_settings_go_along(tmp_path):
    model = tiny_model("llama", tokenizer=make_tokenizer())
    model.tokenizer.chat_template = "{{ messages[0].content }}"
    model.module.generation_config.update(do_sample=True, top_k=7)
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    smaller = prune(model, allocate(random_scores(model), Recipe(ratio=0.3)), stats)
    folder = export(smaller, tmp_path / "chat").path
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages[0].content }}"
    assert json.loads((folder / "generation_config.json").read_text())["top_k"] == 7
    assert json.loads((folder / "recipe.json").read_text()) == smaller.recipe.to_dict()
    assert json.loads((folder / "report.json").read_text()) == smaller.report.to_dict()


def test_layers_are_described_by_the_standard_key(exports):
    config = json.loads((exports / "qwen3 emptied" / "config.json").read_text())
    # One KV group and a few channels of zeros stand where nothing is left.
    assert config["per_layer_config"] == {
        "0": {"num_attention_heads": 2, "num_key_value_heads": 1},
        "1": {"intermediate_size": 16},
    }
    assert config["zeroed"] == {"attention": [0], "mlp": [1]}
    config = json.loads((exports / "qwen3 uneven" / "config.json").read_text())
    assert config["per_layer_config"] == {
        "0": {"intermediate_size": 21},
        "1": {"intermediate_size": 4, "num_attention_heads": 6, "num_key_value_heads": 3},
    }
    assert config["output_biases"] == {"attention": [1], "mlp": [0, 1]}
    assert (config["intermediate_size"], config["num_attention_heads"], config["model_type"]) == (24, 8, "qwen3")


@pytest.mark.parametrize("name", STOCK)
def test_the_modelling_file_is_short_and_imports_torch_and_transformers_alone(exports, name):
    (file,) = (exports / f"{name} uneven").glob("*.py")
    source = file.read_text()
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported == {"__future__", "typing", "torch", "transformers"}
    assert len(source.splitlines()) < 160


def test_an_image_model_of_our_own_class_is_refused_and_nothing_written(tmp_path):
    model = tiny_model("llamagen")
    with pytest.raises(InputError, match="LlamaGenForImages, which transformers does not have, so 'transformers'"):
        export(model, tmp_path / "images")
    assert not list(tmp_path.iterdir())


def test_shapes_that_counts_do_not_explain_are_refused(tmp_path):
    model = tiny_model("llama")
    model.module.model.layers[0].mlp.gate_proj = torch.nn.Linear(32, 23, bias=False)
    with pytest.raises(InputError, match="other shapes than its numbers of heads and channels say"):
        export(model, tmp_path / "odd")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failure", "raises", "says"),
    [
        (SafetensorError("Error while serializing: No space left"), NumpruneError, "No space left; nothing was left"),
        (OSError(28, "No space left on device"), NumpruneError, "No space left on device; nothing was left there"),
    ],
    ids=["safetensors", "system"],
)
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, failure, raises, says):
    def fail(module, folder, **options):
        (Path(folder) / "model.safetensors").write_text("half")
        raise failure

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    with pytest.raises(raises, match=says):
        export(pruned("llama", "uneven"), tmp_path / "full")
    assert not list(tmp_path.iterdir())


def test_a_stop_leaves_nothing(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        export(pruned("llama", "uneven"), tmp_path / "stopped", cancel=stop)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied(exports, tmp_path):
    return shutil.copytree(exports / "llama uneven", tmp_path / "copied")


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("plan", ["emptied", "emptied, with biases"])
def test_folders_that_leave_emptied_modules_out_open(tmp_path, plan):
    """As numprune 0.1 wrote them at first: no zeros, and `skip` in the config."""
    model = pruned("llama-biases", plan)
    folder = export(model, tmp_path / "earlier").path
    write_module(model.module, tmp_path, model.written_dtype)
    shutil.copy(tmp_path / "model.safetensors", folder)

    def say_skip(config):
        del config["zeroed"]
        config["per_layer_config"] = {"0": {"skip": ["attention"]}, "1": {"skip": ["mlp"]}}

    edit_config(folder, say_skip)
    opened = load(folder, device="cpu")
    assert opened.units() == model.units()
    assert torch.equal(logits(opened), logits(model))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"0": {"intermediate_size": 22}}, "do not match its config.json"),
        ({"0": {"hidden_size": 16}}, "Layers of this model differ in hidden_size; only heads and channels may differ"),
        ({"0": {"num_key_value_heads": 2}}, "Layer 0 of this model has other heads per KV head"),
    ],
)
def test_sizes_that_cannot_be_are_refused(copied, sizes, says):
    edit_config(copied, lambda config: config.update(per_layer_config=sizes))
    with pytest.raises(LoadError, match=says):
        load(copied, device="cpu")


def test_missing_tensors_are_refused(copied):
    state = load_file(copied / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"do not match its config.json .*layers.1.mlp.up_proj"):
        load(copied, device="cpu")


def test_the_template_itself_is_a_model():
    """As it lies in the package, for a model of its own sizes."""
    from transformers import LlamaConfig

    from numprune.export._modeling_template import PrunedLlamaForCausalLM

    sizes = {"0": {"intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}}
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=256,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        allow_global_per_layer_attribute_access=True,
        per_layer_config=sizes,
    )
    model = PrunedLlamaForCausalLM(config)
    assert isinstance(model, LlamaForCausalLM)
    assert [layer.mlp.down_proj.in_features for layer in model.model.layers] == [8, 16]
    assert [layer.self_attn.q_proj.out_features for layer in model.model.layers] == [128, 256]
    assert model(torch.arange(8)[None]).logits.shape == (1, 8, 16)


def test_the_snippet_says_how_vllm_serves_the_folder(tmp_path):
    """As a shell reads them, whatever the name of the folder."""
    written = export(pruned("llama", "uneven"), tmp_path / "it's smaller")
    lines = [line.removeprefix("#   ") for line in written.snippet.splitlines() if line.startswith("#   ")]
    serve, ask = (shlex.split(line) for line in lines)
    assert serve == ["vllm", "serve", str(written.path), "--trust-remote-code"]
    assert json.loads(ask[-1])["model"] == str(written.path)
    dense = export(tiny_model("llama", tokenizer=make_tokenizer()), tmp_path / "dense")
    assert "trust" not in dense.snippet
    assert f"vllm serve {dense.path}\n" in dense.snippet
