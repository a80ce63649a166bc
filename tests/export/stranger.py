"""A program that has transformers but no numprune: opens every export it finds and writes down what it saw.

    python -I stranger.py FOLDER

Every folder in FOLDER holds an export and, as expected.safetensors, what the model it was made from computes.
"""

import json
import sys
from pathlib import Path


class Blocked:
    """Finds numprune only to refuse it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numprune":
            raise ImportError("numprune is not here")


sys.meta_path.insert(0, Blocked())

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def logits(model, expected):
    with torch.no_grad():
        return model(input_ids=expected["ids"], attention_mask=expected["mask"], use_cache=False).logits


def written(model, expected, **options):
    """Ten tokens, the likeliest each."""
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 1, **options}
    return model.generate(input_ids=expected["ids"], attention_mask=expected["mask"], **options)


INPUTS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")
"""What the linears in front of an attention are called: three, or one for all."""


def base_model_matches(folder, model):
    """What vLLM builds its own model around: as a config alone makes it, it takes every tensor of the checkpoint, and
    every layer's heads are those that the config names."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    base = transformers.AutoModel.from_config(config, trust_remote_code=True)
    shapes = {name: tensor.shape for name, tensor in base.state_dict().items()}
    wanted = {name: tensor.shape for name, tensor in model.base_model.state_dict().items()}
    text, fine, checked = config.get_text_config(decoder=True), True, []
    for module in base.modules():
        index = getattr(module, "layer_idx", None)
        linears = [getattr(module, name) for name in INPUTS if hasattr(module, name)]
        if index is None or not linears:
            continue
        sizes = text.per_layer_config[index]
        width = getattr(module, "head_dim", None) or module.head_size
        heads = sizes.num_attention_heads
        groups = getattr(sizes, "num_key_value_heads", None) or heads
        fine &= sum(linear.out_features for linear in linears) == (heads + 2 * groups) * width
        fine &= len(linears) == 1 or linears[0].out_features == heads * width
        checked.append(index)
    return fine and shapes == wanted and checked == list(range(text.num_hidden_layers))


def asks_for_every_attention(model, expected):
    """Whether every layer goes through the attention that an engine registers, as vLLM does."""
    asked = []

    def counted(module, query, *args, **kwargs):
        asked.append(module.layer_idx)
        return query.transpose(1, 2), None

    transformers.AttentionInterface.register("counted", counted)
    transformers.AttentionMaskInterface.register("counted", transformers.masking_utils.sdpa_mask)
    text = model.config.get_text_config(decoder=True)
    text._attn_implementation = "counted"
    logits(model, expected)
    return sorted(asked) == list(range(text.num_hidden_layers))


def look_at(folder):
    expected = load_file(folder / "expected.safetensors")
    (auto,) = set(json.loads((folder / "config.json").read_text())["auto_map"]) - {"AutoModel"}

    def load(source=folder, **options):
        return getattr(transformers, auto).from_pretrained(source, trust_remote_code=True, **options)

    seen = {}
    for attention in ("eager", "sdpa"):
        if f"logits {attention}" in expected:
            model = load(attn_implementation=attention)
            seen[attention] = torch.equal(logits(model, expected), expected[f"logits {attention}"])
    model = load()
    usual = logits(model, expected)
    seen["class"] = type(model).__name__
    seen["code"] = Path(sys.modules[type(model).__module__].__file__).name
    seen["generates"] = torch.equal(written(model, expected), expected["written"])
    seen["without cache"] = torch.equal(written(model, expected, use_cache=False), expected["written"])
    static = written(model, expected, cache_implementation="static", disable_compile=True)
    seen["static cache"] = torch.equal(static, expected["written"])
    seen["device map"] = torch.equal(logits(load(device_map="auto"), expected), usual)
    if folder.name.startswith("llama "):
        places = dict.fromkeys(
            ("model.embed_tokens", "model.norm", "model.rotary_emb", "model.layers.0", "lm_head"), "cpu"
        )
        offloaded = load(device_map={**places, "model.layers.1": "disk"}, offload_folder=folder.with_name("offloaded"))
        seen["offloaded to disk"] = torch.equal(logits(offloaded, expected), usual)
    again = folder.with_name(f"{folder.name} again")
    model.save_pretrained(again)
    seen["base model again"] = "AutoModel" in json.loads((again / "config.json").read_text())["auto_map"]
    seen["base model"] = base_model_matches(folder, model)
    seen["saved again"] = torch.equal(logits(load(again), expected), usual)
    seen["attention interface"] = asks_for_every_attention(load(), expected)
    half = load(dtype=torch.bfloat16)
    seen["bfloat16"] = half.dtype == torch.bfloat16 and bool(logits(half, expected).isfinite().all())
    model.set_attn_implementation("eager")
    seen["eager later"] = "logits eager" in expected and torch.equal(logits(model, expected), expected["logits eager"])
    return seen


if __name__ == "__main__":
    try:
        import numprune  # noqa: F401
    except ImportError:
        blocked = True
    else:
        blocked = False
    torch.set_num_threads(1)
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.safetensors"))
    report = {folder.name: look_at(folder) for folder in folders}
    report["numprune"] = {"blocked": blocked, "imported": any(name.startswith("numprune") for name in sys.modules)}
    (Path(sys.argv[1]) / "seen.json").write_text(json.dumps(report))
