import json
import os
import pickle
import shutil

import pytest
import torch
import transformers
from architectures import make_tokenizer, random_ids, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from numprune import (
    InputError,
    LlamaGen,
    LoadError,
    Recipe,
    UnsupportedArchitecture,
    allocate,
    calibrate,
    embedded_models,
    generate,
    held_out_text,
    load,
    perplexity,
    prune,
    score,
)
from numprune.evaluation.images.judge import panel_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes it; copy before changing."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model("llama", tokenizer=make_tokenizer())
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def pruned_folder(checkpoint, tmp_path):
    model = load(checkpoint, device="cpu")
    stats = calibrate(model, random_ids(2, 16), samples=2, sequence_length=16)
    prune(model, allocate(score(model, stats), Recipe(ratio=0.4)), stats).save(tmp_path / "pruned")
    return tmp_path / "pruned"


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, says, error=LoadError, **options):
    with pytest.raises(error, match=says) as caught:
        load(folder, device="cpu", **options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_every_embedded_model_loads_and_writes_or_draws():
    assert embedded_models() == ["tiny-images", "tiny-stories"]
    for name in embedded_models():
        model = load(name, device="cpu")
        assert model.name == name
        assert not model.module.training
        assert model.dtype == torch.float32
        assert model.prunable_parameters < model.parameters
        assert model.recipe is None
        if isinstance(model, LlamaGen):
            seen = panel_of(model).verdicts(model.decode(model.generate(list(range(10)), cfg_scale=2.0)))
            # Its card says 99.8 %.
            assert seen.recognised(torch.arange(10)) >= 0.8
            continue
        text = generate(model, "Once upon a time", max_new_tokens=4)
        assert text.startswith("Once upon a time")
        assert len(text) > len("Once upon a time")


def test_default_model_has_the_shape_the_interface_is_built_for():
    model = load("tiny-stories", device="cpu")
    assert model.layers == 8
    assert set(model.units().values()) == {8, 512}
    assert model.parameters == sum(p.numel() for p in model.module.parameters())


def test_held_out_text_is_stories():
    lines = [json.loads(line) for line in held_out_text().read_text().splitlines()]
    assert len(lines) > 10
    assert all(len(line["text"]) > 200 for line in lines)


def test_a_folder_loads_as_transformers_loads_it(folder):
    model = load(folder, device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = random_ids(2, 9)
    assert torch.equal(model.module(ids).logits, reference(ids).logits)
    assert model.architecture == "LlamaForCausalLM"
    assert all(not p.requires_grad for p in model.module.parameters())


def test_a_tokenizer_without_padding_stays_without_and_prompts_of_several_lengths_are_written_on(folder):
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = None, "right"
    tokenizer.save_pretrained(folder)
    model = load(folder, device="cpu")
    assert model.tokenizer.pad_token is None
    prompts = ["the cat and", "a"]
    assert generate(model, prompts, max_new_tokens=5) == [
        generate(model, prompt, max_new_tokens=5, seed=seed) for seed, prompt in enumerate(prompts)
    ]


def test_a_path_may_be_a_string_or_a_path_and_relative(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    prints = {load(name, device="cpu").fingerprint() for name in (str(folder), folder, "./model", "model")}
    assert len(prints) == 1


def test_pytorch_weights_load_when_they_are_only_tensors(folder):
    expected = load(folder, device="cpu")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model = load(folder, device="cpu")
    assert model.fingerprint() == expected.fingerprint()


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["zip", "raw"])
def test_pytorch_weights_that_run_code_are_refused_and_nothing_runs(folder, tmp_path, how):
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "the payload ran"
    if how == "zip":
        torch.save({"weight": Payload(marker)}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker), protocol=2))
    refused(folder, "wants to run code, which is refused; convert them to safetensors")
    assert not marker.exists()
    # The payload is a real one.
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_modelling_code_in_a_folder_is_not_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "of-my-own"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(folder, "custom code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle" * 50])
def test_damaged_pytorch_weights_are_refused(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, "damaged pickle")


@pytest.mark.parametrize("size", [0, 4, 3000, -40])
def test_truncated_safetensors_are_refused(folder, size):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    refused(folder, "damaged or cut short .* download or save them again")


def test_missing_tensors_are_refused_by_name(folder):
    edit_weights(folder, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, r"1 tensors of the weights .* are missing \(such as model.layers.1.mlp.up_proj.weight\)")


def test_tensors_of_another_shape_are_refused_by_name(folder):
    edit_weights(folder, lambda state: state.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 32)}))
    refused(folder, r"another shape than the config says \(such as model.layers.1.mlp.up_proj.weight, 3 x 32 instead")


def test_a_tied_output_embedding_may_be_missing(tmp_path):
    model = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer())
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load(tmp_path, device="cpu").parameters == model.parameters


def test_the_tokenizer_of_a_larger_model_is_refused(folder):
    tiny_model("llama", vocab_size=60).module.save_pretrained(folder)
    refused(folder, "ids up to 103 but the model embeds 60 tokens")


def test_tokens_added_beyond_the_embedding_are_told_and_text_that_uses_them_is_refused(folder):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(8)])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    model = load(folder, device="cpu")
    assert "1 added tokens for which the model has no embedding (such as <pad>)" in model.notes[0]
    assert generate(model, ["the cat", "a"], max_new_tokens=3)[0].startswith("the cat")
    for step in (lambda text: generate(model, text), lambda text: perplexity(model, [text])):
        with pytest.raises(InputError, match=r"112.*knows 0 to 111"):
            step("the <pad> cat")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_damaged_tokenizer_is_refused(folder, damage):
    if damage == "missing":
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tokenizer.json").write_text('{"version": "1.0", ')
    refused(folder, "Cannot load the tokenizer of .*; mend that folder")


@pytest.mark.parametrize("text", ["", "{oops", "[]", "{}", '{"model_type": 7}'])
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "Cannot load .*config.*; mend that folder|model type")


def test_a_config_with_a_value_of_the_wrong_type_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "big"}))
    refused(folder, "hidden_size")


def test_a_folder_without_weights_or_config_is_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_a_file_instead_of_a_folder_is_refused(folder):
    refused(folder / "model.safetensors", "is a file, not a model folder; give the folder")


@pytest.mark.parametrize(
    "name", ["no-such-model", "/no/such/folder", "./nowhere", "~/nowhere/at/all", "", "x" * 5000, "a\0b"]
)
def test_an_unknown_name_is_refused_with_what_is_known(name):
    message = refused(name, "neither an embedded model .* nor an existing folder nor a hub id")
    assert "tiny-stories" in message
    assert len(message) < 400


def test_an_unreachable_hub_id_is_refused():
    refused("nobody/no-such-model", "Cannot load nobody/no-such-model: .* check the name and the network")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (transformers.MixtralConfig(architectures=["MixtralForCausalLM"]), r"MixtralForCausalLM .*\(MoE\)"),
        (transformers.Qwen3MoeConfig(architectures=["Qwen3MoeForCausalLM"]), r"Qwen3MoeForCausalLM .*\(MoE\)"),
        (transformers.DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"]), r"DeepseekV3ForCausalLM .*\(MoE\)"),
        (transformers.T5Config(architectures=["T5Model"]), "T5Model .* encoder-decoder"),
        (
            transformers.StableLmConfig(architectures=["StableLmForCausalLM"], qk_layernorm=True),
            "norm for every single head",
        ),
        (transformers.Olmo3Config(architectures=["Olmo3ForCausalLM"]), "Olmo3ForCausalLM .*'olmo3'.* has no adapter"),
        (transformers.GPT2Config(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel .*'gpt2'.* has no adapter"),
        (transformers.LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\)"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_architectures_that_cannot_be_pruned_are_refused_before_weights_are_read(config, says, tmp_path):
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"reading this would fail")
    refused(tmp_path, says, UnsupportedArchitecture)


def test_an_architecture_is_refused_by_name_even_where_its_config_cannot_be_read(folder):
    config = {"model_type": "exaone4", "architectures": ["Exaone4ForCausalLM"], "sliding_window_pattern": "LLLG"}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, r"Exaone4ForCausalLM \(model_type 'exaone4'\) has no adapter", UnsupportedArchitecture)


def test_an_architecture_nobody_knows_is_refused_by_name(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-type"}))
    refused(folder, "no-such-type")


@pytest.mark.parametrize("device", ["gpu", "meta", "", "cuda:99", "cpu cuda"])
def test_a_device_that_does_not_exist_is_refused(folder, device):
    with pytest.raises(InputError, match=f"Device '{device}' is not available here; use auto, cpu, cuda or mps"):
        load(folder, device=device)


@pytest.mark.parametrize("dtype", ["int8", "half", "", torch.int8])
def test_a_dtype_that_is_no_float_is_refused(folder, dtype):
    refused(folder, "use auto, checkpoint, float32, float16, bfloat16", InputError, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_by_name_and_by_type(folder, dtype):
    for given in (dtype, getattr(torch, dtype)):
        model = load(folder, device="cpu", dtype=given)
        assert {p.dtype for p in model.module.parameters()} == {getattr(torch, dtype)}
        assert model.bytes == model.parameters * getattr(torch, dtype).itemsize


def test_auto_dtype_is_float32_on_a_cpu(folder):
    load(folder, device="cpu", dtype="bfloat16").save(folder.parent / "half")
    assert json.loads((folder.parent / "half/config.json").read_text())["dtype"] == "bfloat16"
    assert load(folder.parent / "half", device="cpu").dtype == torch.float32


def test_fingerprint_tells_models_apart(folder):
    model = load(folder, device="cpu")
    expected = model.fingerprint()
    assert expected == load(folder, device="cpu").fingerprint()
    assert expected == load(folder, device="cpu", dtype="bfloat16").fingerprint()
    assert expected != tiny_model("llama", seed=1).fingerprint()
    model.module.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert expected != model.fingerprint()


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("{", "numprune.json is damaged; prune and save again"),
        ("[]", "numprune.json is damaged"),
        ('{"format": 1}', "numprune.json is damaged"),
        ('{"format": 1, "units": {"x": 1}}', "numprune.json is damaged"),
        ('{"format": 1, "units": {"0.mlp": "x"}}', "numprune.json is damaged"),
        ('{"format": 99}', "format 99, this version reads 1; update numprune"),
        ('{"format": 1, "units": {"0.mlp": 3}}', "do not match its numprune.json .*0.mlp"),
        ('{"format": 1, "units": {"0.mlp": 1000}}', "do not match its numprune.json|is damaged"),
        ('{"format": 1, "units": {}}', "do not match its numprune.json"),
    ],
)
def test_a_damaged_marker_of_a_pruned_model_is_refused(pruned_folder, marker, says):
    (pruned_folder / "numprune.json").write_text(marker)
    refused(pruned_folder, says)


def test_damaged_weights_of_a_pruned_model_are_refused(pruned_folder):
    edit_weights(pruned_folder, lambda state: state.pop("model.norm.weight"))
    refused(pruned_folder, "do not match its numprune.json .*model.norm.weight")
    edit_weights(pruned_folder, lambda state: state.update({"model.norm.weight": torch.ones(3)}))
    refused(pruned_folder, "do not match its numprune.json .*model.norm.weight")
    edit_weights(
        pruned_folder, lambda state: state.update({"model.norm.weight": torch.ones(32), "more": torch.ones(3)})
    )
    refused(pruned_folder, "do not match its numprune.json .*more")
    weights = pruned_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    refused(pruned_folder, "damaged or cut short")


def test_a_pruned_model_in_several_files_loads_and_samples_beside_it_do_not_matter(pruned_folder):
    expected = load(pruned_folder, device="cpu")
    (pruned_folder / "model.safetensors").unlink()
    expected.module.save_pretrained(pruned_folder, max_shard_size="20KB", save_original_format=False)
    save_file({"tokens": torch.zeros(2, 2)}, pruned_folder / "self-abc.safetensors")
    assert len(list(pruned_folder.glob("model-*.safetensors"))) > 1
    model = load(pruned_folder, device="cpu")
    assert model.parameters == expected.parameters
    assert model.fingerprint() == expected.fingerprint()


def test_a_pruned_model_loads_in_another_dtype(pruned_folder):
    model = load(pruned_folder, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    assert model.fingerprint() == load(pruned_folder, device="cpu").fingerprint()
