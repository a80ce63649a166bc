"""What of a folder's config.json has to be settled before anything is built from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import CONFIG_MAPPING

from numprune.errors import LoadError, UnsupportedArchitecture
from numprune.files import from_json
from numprune.loading.weights import WeightFiles, adapter_leftover, quantisation
from numprune.models.adapter import adapter_for, supported_model_types
from numprune.models.depth import PER_LAYER
from numprune.models.layer_sizes import text_config


def raw_config(folder: Path) -> dict[str, Any]:
    """The config.json as it stands; empty where it cannot be read, which transformers will explain."""
    try:
        config = from_json((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def check_known(config: dict[str, Any]) -> None:
    """Raise UnsupportedArchitecture, by name, for a config whose type no adapter serves.

    transformers may fail to read such a config, of which nothing is needed to refuse it.
    """
    kind = config.get("model_type")
    own_code = "auto_map" in config and kind not in CONFIG_MAPPING
    if isinstance(kind, str) and kind not in supported_model_types() and not own_code:
        adapter_for(SimpleNamespace(**config))


def check_lists(name: str, config: dict[str, Any]) -> None:
    """Raise LoadError for a list of a config that has not one value a layer."""
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        layers = part.get("num_hidden_layers")
        for key in PER_LAYER:
            values = part.get(key)
            if isinstance(values, list) and isinstance(layers, int) and len(values) != layers:
                raise LoadError(
                    f"config.json of {name} has {len(values)} entries in {key} but num_hidden_layers is {layers};"
                    " mend one of them."
                )


def settle_quantisation(name: str, config: Any, raw: dict[str, Any], weights: WeightFiles | None) -> list[str]:
    """Refuse quantised weights; take out of the config what says they are when they are not, and say so.

    Args:
        weights: None where they are not here yet; then the config is believed.

    Raises:
        UnsupportedArchitecture: the weights are quantised; the method is named.
        LoadError: an adapter was saved among the weights.
    """
    given = getattr(config, "quantization_config", None)
    claimed = given if isinstance(given, dict) else raw.get("quantization")
    tensors = None if weights is None else weights.tensors
    method = None if tensors is None else quantisation(tensors)
    if method is None and claimed and tensors is None:
        method = "MLX" if not isinstance(given, dict) else str(given.get("quant_method") or "unknown method")
    if method is not None:
        raise UnsupportedArchitecture(
            f"{name} is not supported: its weights are quantised ({method}), and a part of them no longer fits its"
            " scales; give the original model, in float32, float16 or bfloat16."
        )
    lora = None if tensors is None else adapter_leftover(tensors)
    if lora is not None:
        raise LoadError(
            f"The weights of {name} hold an adapter (LoRA) that was not merged (such as {lora}); call"
            " merge_and_unload() of peft and save the model again."
        )
    if not claimed:
        return []
    if given is not None:
        del config.quantization_config
    return [f"config.json of {name} says its weights are quantised, but they are plain numbers; it was not followed."]


def set_tied(config: Any, tied: bool) -> None:
    """Say in a config, and in the part of it that describes the decoder, whether the output layer is the embedding."""
    for part in (config, text_config(config)):
        if hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = tied
