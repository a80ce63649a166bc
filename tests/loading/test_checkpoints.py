"""Checkpoints as people have them: what their tensors and files say goes before names and flags."""

import json
import shutil

import pytest
import torch
from architectures import make_tokenizer, random_ids, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from numprune import LoadError, Recipe, UnsupportedArchitecture, allocate, calibrate, export, load, prune, score


def written(folder, name="llama-gqa-tied", **changes):
    """A tiny checkpoint as transformers writes it, and its module."""
    model = tiny_model(name, tokenizer=make_tokenizer(), **changes)
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return model.module


def edit(folder, change, file="model.safetensors"):
    state = load_file(folder / file)
    change(state)
    save_file(state, folder / file, metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def logits(model, ids=None):
    module = getattr(model, "module", model)
    return module(random_ids(2, 9) if ids is None else ids).logits


def thirty(folder, out, ratio=0.3):
    model = load(folder, device="cpu")
    stats = calibrate(model, random_ids(4, 16), samples=4, sequence_length=16)
    pruned = prune(model, allocate(score(model, stats), Recipe(ratio=ratio)), stats)
    pruned.save(out)
    return pruned


def test_an_output_layer_of_its_own_beside_a_flag_that_ties_it_stays_its_own(tmp_path):
    written(tmp_path / "in")
    head = torch.randn(112, 32)
    edit(tmp_path / "in", lambda state: state.update({"lm_head.weight": head}))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "in", dtype=torch.float32)
    model = load(tmp_path / "in", device="cpu")
    assert "lm_head.weight of its own" in " ".join(model.notes)
    assert torch.equal(logits(model), logits(expected))
    model.save(tmp_path / "dense")
    assert torch.equal(logits(load(tmp_path / "dense", device="cpu")), logits(expected))
    pruned = thirty(tmp_path / "in", tmp_path / "out")
    assert torch.equal(pruned.module.lm_head.weight, head)
    for folder in ("dense", "out"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits(load(tmp_path / "out", device="cpu")), logits(pruned))
    export(pruned, tmp_path / "hf")
    foreign = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True, dtype=torch.float32)
    torch.testing.assert_close(logits(foreign), logits(pruned))


def test_narrowed_layers_keep_an_output_layer_that_a_flag_would_tie(tmp_path):
    written(tmp_path / "in")
    edit(tmp_path / "in", lambda state: state.update({"lm_head.weight": torch.randn(112, 32)}))
    pruned = thirty(tmp_path / "in", tmp_path / "out")
    edit_config(tmp_path / "out", tie_word_embeddings=True)
    assert torch.equal(logits(load(tmp_path / "out", device="cpu")), logits(pruned))


def test_a_missing_output_layer_is_the_embedding_whatever_the_flag_says(tmp_path):
    module = written(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=False)
    model = load(tmp_path, device="cpu")
    assert torch.equal(logits(model), logits(module))
    assert "no lm_head.weight, so the embedding is its output layer" in model.notes[0]
    assert model.config.tie_word_embeddings is True


def test_the_same_output_layer_twice_is_counted_once(tmp_path):
    module = written(tmp_path)
    edit(tmp_path, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    assert load(tmp_path, device="cpu").parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("stray", ["model_old.safetensors", "model-00009-of-00009.safetensors", "zz.safetensors"])
def test_a_file_the_index_does_not_name_is_not_read(tmp_path, stray, pruned):
    written(tmp_path / "in")
    folder = tmp_path / ("out" if pruned else "in")
    if pruned:
        thirty(tmp_path / "in", folder)
    expected = logits(load(folder, device="cpu"))
    zeros = {key: torch.zeros_like(value) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / stray)
    model = load(folder, device="cpu")
    assert torch.equal(logits(model), expected)
    assert f"{stray} in {folder} was not read; model.safetensors is the model" in " ".join(model.notes)


def test_the_index_goes_before_a_whole_file_that_was_left_over(tmp_path):
    module = written(tmp_path)
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    zeros = {key: torch.zeros_like(value) for key, value in module.state_dict().items() if key != "lm_head.weight"}
    save_file(zeros, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(tmp_path, device="cpu")
    assert torch.equal(logits(model), logits(module))
    assert "model.safetensors in" in model.notes[0]


def test_an_index_of_files_that_are_gone_gives_way_to_the_whole_file(tmp_path):
    module = written(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load(tmp_path, device="cpu")
    assert torch.equal(logits(model), logits(module))
    assert "names files that are not there; model.safetensors was read instead" in model.notes[0]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"model-00001-of-00001.safetensors, which .* names, is not there \(1 of 1"):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize("flag", ["bfloat16", "float32", None], ids=lambda flag: f"config says {flag}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_data_type_of_the_checkpoint_is_written(tmp_path, dtype, flag):
    written(tmp_path / "in").to(dtype).save_pretrained(tmp_path / "in")
    edit_config(tmp_path / "in", dtype=... if flag is None else flag)
    pruned = thirty(tmp_path / "in", tmp_path / "out")
    assert pruned.dtype == torch.float32
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {dtype}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    source, target = ((tmp_path / part / "model.safetensors").stat().st_size for part in ("in", "out"))
    assert target < source
    header = 4096
    assert abs(source - pruned.report.bytes_before) < header
    assert abs(target - pruned.report.bytes_after) < header
    for format in ("transformers", "numprune"):
        export(pruned, tmp_path / format, format=format)
        assert {value.dtype for value in load_file(tmp_path / format / "model.safetensors").values()} == {dtype}


def test_a_data_type_that_was_asked_for_is_written(tmp_path):
    written(tmp_path / "in").half().save_pretrained(tmp_path / "in")
    load(tmp_path / "in", device="cpu", dtype="float32").save(tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors")["model.norm.weight"].dtype == torch.float32


def test_weights_beyond_the_checkpoints_type_are_refused_by_name(tmp_path):
    written(tmp_path / "in").half().save_pretrained(tmp_path / "in")
    model = load(tmp_path / "in", device="cpu")
    model.module.model.norm.weight[3] = 1e6
    with pytest.raises(Exception, match=r"model.norm.weight has weights beyond float16; give --dtype float32"):
        model.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def ending(state, ending, tensors, layer="model.layers.0.mlp.up_proj"):
    state.pop(f"{layer}.weight")
    state.update({f"{layer}.{name}": tensor for name, tensor in tensors.items()})


QUANTISED = {
    "GPTQ": {"qweight": torch.zeros(4, 24).int(), "qzeros": torch.zeros(1, 3).int(), "scales": torch.ones(1, 24)},
    "AWQ": {"qweight": torch.zeros(32, 3).int(), "qzeros": torch.zeros(1, 3).int(), "scales": torch.ones(1, 24)},
    "MLX": {"weight": torch.zeros(24, 4).int(), "scales": torch.ones(24, 1), "biases": torch.ones(24, 1)},
    "bitsandbytes": {"weight": torch.zeros(384, 1).byte(), "weight.absmax": torch.ones(12)},
    "HQQ": {"W_q": torch.zeros(12, 32).byte()},
    "compressed-tensors": {"weight_packed": torch.zeros(24, 4).int(), "weight_shape": torch.tensor([24, 32])},
    "FP8": {"weight": torch.zeros(24, 32).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("flag", [False, True], ids=["no flag", "flag"])
@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_tensors_are_named_with_and_without_a_flag(tmp_path, method, flag):
    written(tmp_path, "llama")
    edit(tmp_path, lambda state: ending(state, method, QUANTISED[method]))
    if flag:
        edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedArchitecture, match=rf"quantised \({method}.*give the original"):
        load(tmp_path, device="cpu")


def test_a_flag_of_quantisation_beside_plain_weights_is_not_followed(tmp_path):
    module = written(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    model = load(tmp_path, device="cpu")
    assert torch.equal(logits(model), logits(module))
    assert "but they are plain numbers" in model.notes[0]
    model.save(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def lora(folder, weights=True, base="owner/base"):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    if weights:
        save_file({"base_model.model.x.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside a model"])
def test_an_adapter_has_to_be_merged_first(tmp_path, alone):
    if not alone:
        written(tmp_path)
    lora(tmp_path)
    with pytest.raises(LoadError, match=r"adapter \(LoRA\).* base model owner/base first: .*merge_and_unload"):
        load(tmp_path, device="cpu")


def test_what_is_left_of_a_merged_adapter_does_no_harm(tmp_path):
    module = written(tmp_path)
    lora(tmp_path, weights=False)
    assert torch.equal(logits(load(tmp_path, device="cpu")), logits(module))


def test_weights_with_an_adapter_among_them_are_refused(tmp_path):
    written(tmp_path)
    edit(tmp_path, lambda state: ending(state, "", {"base_layer.weight": torch.ones(24, 32)}))
    with pytest.raises(LoadError, match=r"adapter .* not merged .*up_proj.base_layer.weight.*merge_and_unload"):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize(("name", "kv"), [("qwen2", 2), ("llama", 4), ("opt", 4), ("phi3", 2), ("qwen3", 4)])
def test_layers_sized_by_another_tool_open_by_the_shapes_of_their_tensors(tmp_path, name, kv):
    model = tiny_model(name, tokenizer=make_tokenizer())
    stats = calibrate(model, random_ids(4, 16), samples=4, sequence_length=16)
    plan = allocate(score(model, stats), Recipe(ratio=0.0, prune={"1.mlp": tuple(range(8)), "0.attention": (1,)}))
    pruned = prune(model, plan, stats)
    pruned.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    edit_config(tmp_path, layer_inter_size=[24, 16])
    opened = load(tmp_path, device="cpu")
    assert [*opened.units().values()] == [kv - 1, 24, kv, 16]
    assert torch.equal(logits(opened), logits(pruned))
    assert "opened by the shapes of its tensors" in " ".join(opened.notes)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("model.layers.1.mlp.up_proj.weight", (16, 32)),  # gate and down have more
        ("model.layers.1.mlp.down_proj.weight", (32, 40)),
        ("model.norm.weight", (16,)),
        ("model.embed_tokens.weight", (100, 32)),
        ("model.layers.0.self_attn.o_proj.weight", (32, 20)),
    ],
)
def test_shapes_that_no_smaller_layer_has_are_refused_with_both(tmp_path, key, shape):
    written(tmp_path, "llama")
    edit(tmp_path, lambda state: state.update({key: torch.zeros(shape)}))
    with pytest.raises(LoadError, match=r"another shape than the config says .* instead of .* do not explain it"):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("smollm3", "no_rope_layers", [1]),
        ("smollm3", "no_rope_layers", [1, 0, 1]),
        ("gemma3", "layer_types", ["full_attention"]),
        ("mistral", "layer_types", ["full_attention"] * 3),
    ],
)
def test_a_list_with_too_few_or_too_many_layers_is_named_with_both_lengths(tmp_path, name, key, values):
    written(tmp_path, name)
    edit_config(tmp_path, **{key: values})
    with pytest.raises(LoadError, match=rf"{len(values)} entries in {key} but num_hidden_layers is 2"):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize("called", ["tiny llama v1.5.pt", "a.gguf", "x.safetensors", "tiny-stories.bin"])
def test_a_folder_is_a_folder_whatever_its_name(tmp_path, called):
    module = written(tmp_path / called)
    assert torch.equal(logits(load(tmp_path / called, device="cpu")), logits(module))


def test_foreign_code_is_named_in_nothing_that_is_written(tmp_path):
    written(tmp_path / "in", "phi3")
    edit_config(tmp_path / "in", auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})
    settings = json.loads((tmp_path / "in/tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": "other-owner/name--tok.Tok"}, "name_or_path": "/home/ada/x"}
    (tmp_path / "in/tokenizer_config.json").write_text(json.dumps(settings))
    pruned = thirty(tmp_path / "in", tmp_path / "out")
    uniform = load(tmp_path / "in", device="cpu")
    export(uniform, tmp_path / "stock", format="stock")
    for folder in ("out", "stock"):
        for file in (tmp_path / folder).glob("*.json"):
            text = file.read_text()
            assert not any(
                word in text for word in ("auto_map", "other-owner", "/home/ada", "is_local", "_name_or_path")
            )
    export(pruned, tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["auto_map"] == {
        "AutoModel": "modeling_pruned_phi3.PrunedPhi3Model",
        "AutoModelForCausalLM": "modeling_pruned_phi3.PrunedPhi3ForCausalLM",
    }


def test_tokenizer_files_are_written_as_they_were(tmp_path):
    written(tmp_path / "in")
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side, tokenizer.chat_template = None, "right", "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "in")
    settings = json.loads((tmp_path / "in/tokenizer_config.json").read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    (tmp_path / "in/tokenizer_config.json").write_text(json.dumps(settings, indent=4))
    pruned = thirty(tmp_path / "in", tmp_path / "out")
    export(pruned, tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        for folder in ("out", "hf"):
            assert (tmp_path / folder / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert not (tmp_path / "in/special_tokens_map.json").exists()
    assert not (tmp_path / "out/special_tokens_map.json").exists()


def test_names_that_only_transformers_5_knows_are_said_as_version_4_reads_them(tmp_path):
    written(tmp_path / "in", "llama3-rope")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<x>"]})
    tokenizer.save_pretrained(tmp_path / "in")
    assert json.loads((tmp_path / "in/tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    load(tmp_path / "in", device="cpu").save(tmp_path / "out")
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<x>"]
    assert "extra_special_tokens" not in settings
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["rope_scaling"]["factor"] == 4.0
    again = load(tmp_path / "out", device="cpu")
    assert again.config.rope_parameters == load(tmp_path / "in", device="cpu").config.rope_parameters
    assert again.tokenizer("<x>the")["input_ids"] == tokenizer("<x>the")["input_ids"]


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("llama", {"rope_theta": 10000.0, "rope_scaling": None}),
        ("gpt-neox-parallel", {"rotary_pct": 0.5, "rotary_emb_base": 10000.0}),
        ("gemma3", {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}),
        ("qwen3", {"rope_theta": 10000.0}),
    ],
)
def test_rotary_parameters_are_said_in_the_architectures_earlier_words(tmp_path, name, entries):
    written(tmp_path / "in", name)
    load(tmp_path / "in", device="cpu").save(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {key: config[key] for key in entries} == entries


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6}),
        ({"do_sample": False, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
        ({"num_beams": 1, "early_stopping": True}, {"eos_token_id": 1}),
    ],
)
def test_a_generation_config_that_transformers_refuses_to_write_is_mended(tmp_path, given, kept):
    written(tmp_path / "in")
    (tmp_path / "in/generation_config.json").write_text(json.dumps({"eos_token_id": 1, **given}))
    thirty(tmp_path / "in", tmp_path / "out")
    written_one = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert kept.items() <= written_one.items()
    shutil.rmtree(tmp_path / "out")
