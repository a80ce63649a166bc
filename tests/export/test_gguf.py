"""What stands in the file, read back by the gguf package, and uniform files by transformers' own reader."""

import math
import shlex
import sys
import threading

import gguf
import numpy as np
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
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM

from numprune import Cancelled, InputError, ModuleKey, Recipe, allocate, calibrate, prune
from numprune.errors import NumpruneError
from numprune.export import export, formats_for
from numprune.models.model import slice_module

LLAMAS = ("llama", "llama-biases", "llama-gqa-tied", "llama3-rope", "mistral", "qwen2", "phi3")
UNEVEN = {
    ModuleKey(0, "attention"): (0,),
    ModuleKey(0, "mlp"): tuple(range(0, 24, 3)),
    ModuleKey(1, "mlp"): tuple(range(20)),
}


def with_tokenizer(name="llama", **changes):
    return tiny_model(name, tokenizer=make_tokenizer(), **changes)


def sliced(model, keep):
    return model.around(slice_module(model.module, model.adapter, keep))


def write(model, tmp_path, **options):
    """The file's fields and its tensors by name, and the export."""
    done = export(model, tmp_path / "model.gguf", format="gguf", options=options)
    reader = gguf.GGUFReader(done.path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}, done


def values(tensor):
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def rotated_by_neighbours(weight, heads):
    """Rows of each head in llama.cpp's order: it rotates rows 2 j with 2 j + 1, transformers j with j + D / 2."""
    width = weight.shape[0] // heads
    rows = [
        head * width + half * (width // 2) + j for head in range(heads) for j in range(width // 2) for half in (0, 1)
    ]
    return weight[rows].numpy()


def test_counts_differ_by_layer_in_deci(tmp_path):
    fields, tensors, done = write(sliced(with_tokenizer("llama-gqa-tied"), UNEVEN), tmp_path, dtype="f32")
    assert fields["general.architecture"] == "deci"
    assert fields["deci.attention.head_count"] == [2, 8]
    assert fields["deci.attention.head_count_kv"] == [1, 4]
    assert fields["deci.feed_forward_length"] == [8, 20]
    widths = [
        fields[f"deci.{key}"] for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    ]
    assert widths == [8, 8, 8]
    assert "output.weight" not in tensors  # tied
    assert tensors["blk.0.attn_q.weight"].shape.tolist() == [32, 16]
    assert tensors["blk.1.attn_k.weight"].shape.tolist() == [32, 32]
    assert tensors["blk.0.ffn_down.weight"].shape.tolist() == [8, 32]
    assert any("'deci'" in note for note in done.notes)


def test_one_count_for_all_layers_in_llama(tmp_path):
    keep = {ModuleKey(layer, "attention"): (0, 2, 3) for layer in (0, 1)}
    fields, tensors, done = write(sliced(with_tokenizer(), keep), tmp_path, dtype="f32")
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.head_count"] == fields["llama.attention.head_count_kv"] == 3
    assert fields["llama.attention.key_length"] == 8  # not 32 // 3
    assert (fields["llama.context_length"], fields["llama.embedding_length"], fields["llama.block_count"]) == (
        64,
        32,
        2,
    )
    assert fields["llama.vocab_size"] == len(fields["tokenizer.ggml.tokens"]) == 112
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert not any("'deci'" in note for note in done.notes)
    assert tensors["output.weight"].shape.tolist() == [32, 112]


@pytest.mark.parametrize("name", LLAMAS)
def test_transformers_reads_what_was_written(name, tmp_path):
    """Its reader knows `llama` files but no biases and no frequencies; order and biases are compared one by one."""
    model = with_tokenizer(name, sliding_window=None) if name == "mistral" else with_tokenizer(name)
    _, tensors, _ = write(model, tmp_path, dtype="f32")
    biased = any(tensor.endswith(".bias") for tensor in tensors)
    if not biased and "rope_freqs.weight" not in tensors:
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
        rows = random_ids(2, 16)
        with torch.no_grad():
            torch.testing.assert_close(read(rows).logits, model.module(rows).logits, atol=1e-5, rtol=1e-5)
    state = model.module.state_dict()
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        if name == "phi3":
            q, k, v = state[prefix + "self_attn.qkv_proj.weight"].split((32, 16, 16))
        else:
            q, k, v = (state[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv")
        heads, kv_heads = q.shape[0] // 8, k.shape[0] // 8
        np.testing.assert_array_equal(values(tensors[f"blk.{layer}.attn_q.weight"]), rotated_by_neighbours(q, heads))
        np.testing.assert_array_equal(values(tensors[f"blk.{layer}.attn_k.weight"]), rotated_by_neighbours(k, kv_heads))
        np.testing.assert_array_equal(values(tensors[f"blk.{layer}.attn_v.weight"]), v.numpy())
        if biased:
            q, k = (state[f"{prefix}self_attn.{part}_proj.bias"] for part in "qk")
            np.testing.assert_array_equal(values(tensors[f"blk.{layer}.attn_q.bias"]), rotated_by_neighbours(q, heads))
            np.testing.assert_array_equal(
                values(tensors[f"blk.{layer}.attn_k.bias"]), rotated_by_neighbours(k, kv_heads)
            )


def test_qwen3_keeps_the_order_of_rows_and_is_openelm_where_layers_differ(tmp_path):
    model = with_tokenizer("qwen3", tie_word_embeddings=True)
    fields, tensors, _ = write(model, tmp_path, dtype="f32")
    attention = model.module.model.layers[0].self_attn
    assert fields["general.architecture"] == "qwen3"
    np.testing.assert_array_equal(values(tensors["blk.0.attn_q.weight"]), attention.q_proj.weight.numpy())
    np.testing.assert_array_equal(values(tensors["blk.0.attn_k_norm.weight"]), attention.k_norm.weight.numpy())
    fields, tensors, done = write(sliced(model, UNEVEN), tmp_path, dtype="f32")
    assert fields["general.architecture"] == "openelm"
    assert fields["openelm.attention.head_count"] == [2, 8]
    rows = [attention.q_proj.weight[:16], attention.k_proj.weight[:8], attention.v_proj.weight[:8]]
    np.testing.assert_array_equal(values(tensors["blk.0.attn_qkv.weight"]), torch.cat(rows).numpy())
    assert any("'openelm'" in note for note in done.notes)


def test_what_qwen3_s_graph_lacks_is_refused():
    model = with_tokenizer("qwen3")
    assert formats_for(model)["gguf"] is None
    assert "equal counts in every layer" in formats_for(sliced(model, UNEVEN))["gguf"]
    assert "use another compensation" in formats_for(with_tokenizer("qwen3", attention_bias=True))["gguf"]
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    assert "in Llama's graph only" in formats_for(with_tokenizer("qwen3", rope_parameters=rope))["gguf"]


def test_rows_of_a_pruned_head_are_ordered_within_the_heads_left(tmp_path):
    model = with_tokenizer("llama-gqa-tied")
    _, tensors, _ = write(sliced(model, {ModuleKey(1, "attention"): (1, 3)}), tmp_path, dtype="f32")
    dense = model.module.model.layers[1].self_attn.q_proj.weight
    kept = torch.cat([dense[16:32], dense[48:64]])  # two query heads of 8 in each group
    np.testing.assert_array_equal(values(tensors["blk.1.attn_q.weight"]), rotated_by_neighbours(kept, 4))


def test_a_layer_without_attention_has_no_heads(tmp_path):
    fields, tensors, _ = write(sliced(with_tokenizer(), {ModuleKey(1, "attention"): ()}), tmp_path)
    assert fields["deci.attention.head_count"] == fields["deci.attention.head_count_kv"] == [4, 0]
    assert not any(name.startswith("blk.1.attn") for name in tensors)


@pytest.mark.parametrize(("name", "layer"), [("llama", 0), ("llama-biases", 1)])
def test_where_llama_cpp_needs_a_head_it_gets_one_of_zeros(name, layer, tmp_path):
    """It takes sizes from the first layer, and skips the bias of a layer without heads."""
    model = with_tokenizer(name)
    fields, tensors, done = write(sliced(model, {ModuleKey(layer, "attention"): ()}), tmp_path)
    assert fields["deci.attention.head_count"][layer] == 1
    assert all(not values(tensors[f"blk.{layer}.attn_{part}.weight"]).any() for part in ("q", "k", "v", "output"))
    if name == "llama-biases":
        bias = model.module.model.layers[layer].self_attn.o_proj.bias.numpy()
        np.testing.assert_array_equal(values(tensors[f"blk.{layer}.attn_output.bias"]), bias)
    assert any(f"{layer}.attention;" in note for note in done.notes)


def test_an_emptied_mlp_is_a_channel_of_zeros(tmp_path):
    fields, tensors, done = write(sliced(with_tokenizer(), {ModuleKey(1, "mlp"): ()}), tmp_path)
    assert fields["deci.feed_forward_length"] == [24, 1]
    assert not values(tensors["blk.1.ffn_down.weight"]).any()
    assert any("1.mlp;" in note for note in done.notes)


def test_biases_of_compensation_are_written(tmp_path):
    model = with_tokenizer()
    stats = calibrate(model, random_ids(8, 32, seed=1), samples=8, sequence_length=32)
    pruned = prune(model, with_recipe(allocate(random_scores(model), Recipe(ratio=0.4)), compensation="bias"), stats)
    fields, tensors, _ = write(pruned, tmp_path)
    for layer, part in enumerate(pruned.module.model.layers):
        np.testing.assert_array_equal(values(tensors[f"blk.{layer}.ffn_down.bias"]), part.mlp.down_proj.bias.numpy())
        np.testing.assert_array_equal(values(tensors[f"blk.{layer}.attn_output.bias"]), part.self_attn.o_proj.bias)
    assert "compensation bias" in fields["general.description"]
    assert "numprune" in fields["general.tags"]


def test_llama_3_s_frequencies(tmp_path):
    """Against the rule of Llama 3: short waves stay, long ones stretch by the factor, in between both are mixed."""
    rope = {**ARCHITECTURES["llama3-rope"][0]().rope_parameters, "original_max_position_embeddings": 64}
    _, tensors, _ = write(with_tokenizer("llama3-rope", rope_parameters=rope), tmp_path)
    expected = []
    for pair in range(4):
        turns = 64 / (2 * math.pi * 10000.0 ** (pair / 4))  # of this pair in the original context
        share = min(1.0, max(0.0, (turns - 1.0) / (4.0 - 1.0)))
        expected.append(1 / (share + (1 - share) / 4.0))
    np.testing.assert_allclose(values(tensors["rope_freqs.weight"]), expected, rtol=1e-5)
    assert len(set(expected)) == 3


@pytest.mark.parametrize(("dtype", "type", "error"), [("f16", Type.F16, 1e-3), ("bf16", Type.BF16, 8e-3)])
def test_half_precision_is_of_matrices_only(dtype, type, error, tmp_path):
    model = with_tokenizer()
    _, tensors, _ = write(model, tmp_path, dtype=dtype)
    for name, tensor in tensors.items():
        assert tensor.tensor_type == (type if len(tensor.shape) > 1 else Type.F32), name
    weight = model.module.model.layers[0].mlp.up_proj.weight.numpy()
    np.testing.assert_allclose(values(tensors["blk.0.ffn_up.weight"]), weight, atol=1e-6, rtol=error)


def test_q8_0_where_rows_are_multiples_of_32(tmp_path):
    model = with_tokenizer()
    _, tensors, done = write(model, tmp_path, dtype="q8_0")
    assert tensors["blk.0.ffn_up.weight"].tensor_type == Type.Q8_0
    assert tensors["blk.0.ffn_down.weight"].tensor_type == Type.F16  # 24 channels
    weight = model.module.model.layers[0].mlp.up_proj.weight.numpy()
    # Half a step of 1/127 of the largest weight of 32, and the rounding of that scale to float16.
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(values(tensors["blk.0.ffn_up.weight"]) - weight) <= 0.57 * step).all()
    [note] = [note for note in done.notes if "multiple of 32" in note]
    assert "2 of 16 matrices (blk.0.ffn_down, blk.1.ffn_down)" in note
    assert note.endswith("stay float16.")  # 24 channels cannot be a multiple of 32
    assert done.bytes < export(model, tmp_path / "half.gguf", format="gguf").bytes


def test_odd_rows_come_with_the_rounding_that_avoids_them(tmp_path):
    model = with_tokenizer("llama-gqa-tied", intermediate_size=64)  # two query heads of 8 in each of four groups
    uneven = sliced(model, {ModuleKey(0, "attention"): (0, 1, 3), ModuleKey(1, "mlp"): tuple(range(40))})
    _, _, done = write(uneven, tmp_path, dtype="q8_0")
    [note] = [note for note in done.notes if "multiple of 32" in note]
    assert "2 of 15 matrices (blk.0.attn_output, blk.1.ffn_down)" in note
    assert note.endswith("prune with --round-channels 32 --round-heads 2 for rows that are.")
    even = sliced(model, {ModuleKey(0, "attention"): (0, 1), ModuleKey(1, "mlp"): tuple(range(32))})
    _, tensors, done = write(even, tmp_path, dtype="q8_0")
    assert not any("multiple of 32" in note for note in done.notes)
    assert all(tensor.tensor_type == Type.Q8_0 for tensor in tensors.values() if len(tensor.shape) > 1)


def test_the_tokenizer_covers_every_row_of_the_embedding(tmp_path):
    model = with_tokenizer()
    model.tokenizer.chat_template = "{{ messages }}"
    fields, _, _ = write(model, tmp_path)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[:104] == model.tokenizer.convert_ids_to_tokens(range(104))
    assert tokens[104:] == [f"[PAD{token}]" for token in range(104, 112)]
    assert types == [3, 3] + [1] * 102 + [5] * 8
    assert fields["tokenizer.ggml.merges"][:3] == ["t h", "th e", "Ġ the"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == "{{ messages }}"


def test_a_sliding_window_becomes_the_context(tmp_path):
    fields, _, done = write(with_tokenizer("mistral"), tmp_path)
    assert fields["llama.context_length"] == 6
    assert any("context length is 6" in note for note in done.notes)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in (*LLAMAS, "qwen3")])
def test_other_architectures_are_refused(name):
    model = tiny_model(name, tokenizer=make_tokenizer())
    says = "type longrope" if name == "phi3-longrope" else "no architecture with counts per layer"
    assert says in formats_for(model)["gguf"]


def dynamic_rope(config):
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: setattr(config, "hidden_act", "gelu"), "has gelu in its MLPs"),
        (dynamic_rope, "rotary embedding of type dynamic"),
        (lambda config: config.rope_parameters.update(partial_rotary_factor=0.5), "rotates a part of each head"),
    ],
)
def test_what_the_graph_lacks_is_refused(change, says, tmp_path):
    model = with_tokenizer()
    change(model.config)
    with pytest.raises(InputError, match=says):
        export(model, tmp_path / "model.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


def test_a_weight_beyond_float16_is_refused_and_fits_bfloat16(tmp_path):
    model = with_tokenizer()
    model.module.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(
        NumpruneError, match=r"blk\.1\.ffn_up\.weight has weights beyond float16's 65504; use dtype bf16"
    ):
        export(model, tmp_path / "model.gguf", format="gguf")
    assert not list(tmp_path.iterdir())
    write(model, tmp_path, dtype="bf16")


def test_a_stop_leaves_nothing(tmp_path):
    stop = threading.Event()
    with pytest.raises(Cancelled):
        export(with_tokenizer(), tmp_path / "model.gguf", format="gguf", progress=lambda *_: stop.set(), cancel=stop)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'numprune\[gguf\]'"):
        export(with_tokenizer(), tmp_path / "model.gguf", format="gguf")


def test_a_name_that_llama_cpp_looks_for_tokens_by_is_changed(tmp_path):
    model = with_tokenizer()
    model.name = "me/Phi-3-mini"
    assert write(model, tmp_path)[0]["general.name"] == "phi 3-mini"
    model.name = "me/Phoenix-3"
    assert write(model, tmp_path)[0]["general.name"] == "Phoenix-3"


def test_the_snippet_names_the_file(tmp_path):
    done = export(with_tokenizer(), tmp_path / "it's.gguf", format="gguf")
    compile(done.snippet, "snippet", "exec")
    assert repr(str(done.path)) in done.snippet
    command = next(line for line in done.snippet.splitlines() if "llama-quantize" in line)
    assert shlex.split(command.removeprefix("#"))[1:] == [str(done.path), str(tmp_path / "it's-Q4_K_M.gguf"), "Q4_K_M"]


def test_a_file_of_a_model_with_fewer_layers_counts_those_that_are_left(tmp_path):
    model = deep_model("llama", tokenizer=make_tokenizer())
    shorter = model.around(slice_module(model.module, model.adapter, {}, gone=(1,)))
    fields, tensors, _ = write(shorter, tmp_path, dtype="f32")
    assert fields["llama.block_count"] == 3
    layers = model.adapter.layers(model.module)
    for new, old in enumerate((0, 2, 3)):
        expected = layers[old].mlp.down_proj.weight.numpy()
        assert np.array_equal(values(tensors[f"blk.{new}.ffn_down.weight"]), expected)
    assert not any(name.startswith("blk.3.") for name in tensors)


@pytest.mark.parametrize(("channels", "told"), [(63, True), (32, False), (64, False)])
def test_channels_that_llama_cpp_reads_slowly_are_named(tmp_path, channels, told):
    model = with_tokenizer(intermediate_size=64)
    keep = {ModuleKey(1, "mlp"): range(channels)}
    _, _, done = write(sliced(model, keep), tmp_path, dtype="f16")
    assert (
        any("1 of 2 layers keep a number of channels that is no multiple of 32" in note for note in done.notes) == told
    )
