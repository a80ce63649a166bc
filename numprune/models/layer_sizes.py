"""Sizes of single layers in a transformers config: its standard key `per_layer_config`, read and written.

The config's own numbers of heads and channels are those of a layer at full size; `per_layer_config` holds what a layer
has instead. numprune adds two keys. `output_biases` names the layers whose output projection has a bias that its
architecture does not give it. `zeroed` names those without heads or channels: engines dispatch an attention and an MLP
in every layer, so they have the least of either, in zeros. Folders of numprune 0.1 have nothing there and say `skip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from numprune.errors import LoadError
from numprune.plan.keys import KINDS, ModuleKey


def text_config(config: Any) -> Any:
    """The part of a config that describes the decoder."""
    return config.get_text_config(decoder=True)


ZEROED = {"attention": 1, "mlp": 16}
"""Units of zeros in the place of an emptied module: of channels as many as tensor parallel engines may divide."""


def groups_name(config: Any) -> str:
    """The entry that counts the KV groups of a layer: its KV heads, or its heads where there is no other number."""
    return "num_attention_heads" if getattr(config, "num_key_value_heads", None) is None else "num_key_value_heads"


def groups_per_unit(config: Any) -> int:
    """KV groups that only go together: one, or all of a layer where its heads are normalised as one."""
    return getattr(config, groups_name(config)) if config.model_type == "olmo2" else 1


def channels_name(config: Any) -> str:
    """The entry that counts the MLP channels of a layer."""
    return "ffn_dim" if hasattr(config, "ffn_dim") else "intermediate_size"


def layer_values(config: Any, kind: str, units: int) -> dict[str, int]:
    """The entries of a config for so many units, which keep the heads per group."""
    if kind == "mlp":
        return {channels_name(config): units}
    heads, groups = config.num_attention_heads // getattr(config, groups_name(config)), units * groups_per_unit(config)
    return {"num_attention_heads": groups * heads, groups_name(config): groups}


def write_sizes(config: Any, units: Mapping[ModuleKey, int], biases: Set[ModuleKey]) -> None:
    """Put the units of every module into `per_layer_config`, where they differ from the config's own numbers.

    Args:
        units: of every module, 0 for an emptied one.
        biases: modules whose output projection has a bias the architecture does not give it.
    """
    whole = getattr(config, groups_name(config)) // groups_per_unit(config)
    full = {"attention": whole, "mlp": getattr(config, channels_name(config))}
    layers: dict[int, dict[str, Any]] = {}
    zeroed: dict[str, list[int]] = {}
    for key, count in units.items():
        if count == 0:
            zeroed.setdefault(key.kind, []).append(key.layer)
            count = min(ZEROED[key.kind], full[key.kind])
        if count != full[key.kind]:
            layers.setdefault(key.layer, {}).update(layer_values(config, key.kind, count))
    if not (layers or biases or zeroed):
        return
    # Validation of configs, and much code that opens models, reads the config's own numbers.
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = layers
    if zeroed:
        config.zeroed = zeroed
    if biases:
        config.output_biases = {kind: sorted(key.layer for key in biases if key.kind == kind) for kind in KINDS}


def read_sizes(config: Any) -> dict[ModuleKey, int] | None:
    """The units of every module as `per_layer_config` has them; None for a config without it.

    Raises:
        LoadError: layers differ in something else than heads and channels.
    """
    config = text_config(config)
    if not config.is_heterogeneous:
        return None
    groups, channels = groups_name(config), channels_name(config)
    unknown = sorted(config.per_layer_attributes - {"num_attention_heads", groups, channels})
    if unknown:
        raise LoadError(f"Layers of this model differ in {', '.join(unknown)}; only heads and channels may differ.")
    full = config.num_attention_heads, getattr(config, groups)
    zeroed = getattr(config, "zeroed", {})
    units = {}
    for index, sizes in enumerate(config.per_layer_config):
        if sizes.num_attention_heads * full[1] != full[0] * getattr(sizes, groups):
            raise LoadError(f"Layer {index} of this model has other heads per KV head than the rest; they must agree.")
        for kind, name in (("attention", groups), ("mlp", channels)):
            size = getattr(sizes, name) // (groups_per_unit(config) if kind == "attention" else 1)
            gone = kind in sizes.skip or index in zeroed.get(kind, ())
            units[ModuleKey(index, kind)] = 0 if gone else size
    return units


def forget_sizes(config: Any) -> None:
    """Take `per_layer_config`, and what goes with it, out of a config."""
    config.__dict__.pop("auto_map", None)
    config = text_config(config)
    config.per_layer_config = None
    for name in ("allow_global_per_layer_attribute_access", "output_biases", "zeroed"):
        config.__dict__.pop(name, None)
