"""Opening what pruning wrote: models whose layers have sizes of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from numprune.errors import LoadError
from numprune.files import MARKER
from numprune.loading.settings import set_tied
from numprune.loading.spread import Spread, dispatch
from numprune.loading.weights import WeightFiles, read_tensors
from numprune.models.adapter import Adapter, EmptyAttention
from numprune.models.empty import without_memory
from numprune.models.layer_sizes import forget_sizes, read_sizes
from numprune.models.model import FORMAT, Model, slice_module
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import Recipe
from numprune.plan.report import PruningReport
from numprune.slicing.stream import check_sliceable, narrow_residual


@dataclass(frozen=True)
class RecordedSizes:
    """Units of every module of a pruned model, the width of a narrowed residual stream, and the file that says so."""

    units: dict[ModuleKey, int]
    residual_width: int | None
    record: str


def _saved_sizes(marker: Path) -> RecordedSizes | None:
    """What `Model.save` recorded; None for a folder that `numprune.export` wrote."""
    try:
        saved = json.loads(marker.read_text())
        if "export" in saved:
            return None
        if saved["format"] != FORMAT:
            raise LoadError(f"{marker} has format {saved['format']}, this version reads {FORMAT}; update numprune.")
        units = {ModuleKey.parse(key): int(count) for key, count in saved["units"].items()}
        width = saved.get("residual_width")
        return RecordedSizes(units, width if width is None else int(width), MARKER)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{marker} is damaged; prune and save again.") from error


def recorded_sizes(folder: Path, config: Any) -> RecordedSizes | None:
    """The sizes of a pruned model; None where the config has one size."""
    marker = folder / MARKER
    saved = _saved_sizes(marker) if marker.is_file() else None
    if saved is not None:
        return saved
    units = read_sizes(config)
    return None if units is None else RecordedSizes(units, None, "config.json")


def sizes_of_tensors(name: str, config: Any, adapter: Adapter, weights: WeightFiles) -> RecordedSizes | None:
    """The sizes another tool gave the layers, told by the shapes of their tensors; None where the config has them.

    Raises:
        LoadError: the shapes are not those of layers with fewer heads or channels.
    """
    module = shell(config, adapter, torch.float32)
    renamings = _renamings(module)
    found = {_renamed(key, renamings): info.shape for key, info in weights.tensors.items()}
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    # A checkpoint of the decoder alone has no head, and its tensors lack the prefix.
    prefix = f"{module.base_model_prefix}."
    if not any(key in own for key in found):
        found = {prefix + key: shape for key, shape in found.items()}
    wrong = sorted(key for key, shape in found.items() if key in own and own[key] != shape)
    if not wrong:
        return None
    names = {id(part): part_name for part_name, part in module.named_modules()}
    units = {}
    for block in adapter.blocks(module):
        shape = found.get(f"{names[id(block.last)]}.weight", ())
        if len(shape) == 2 and shape[1] % block.width == 0 and shape[1] // block.width <= block.units:
            units[block.key] = shape[1] // block.width
    narrowed = slice_module(module, adapter, {key: range(count) for key, count in units.items()})
    fitting = {key: tuple(value.shape) for key, value in narrowed.state_dict().items()}
    odd = next((key for key in wrong if fitting.get(key) != found[key]), None)
    if odd is not None:
        raise LoadError(
            f"{len(wrong)} tensors of the weights in {name} have another shape than the config says (such as {odd},"
            f" {_times(found[odd])} instead of {_times(own[odd])}), and fewer heads or channels do not explain it;"
            " give a config that belongs to these weights, or download the checkpoint again."
        )
    return RecordedSizes(units, None, "config.json")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def shell(config: Any, adapter: Adapter, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture at full size, without memory but for its buffers."""
    with without_memory():
        return adapter.auto_class.from_config(config, dtype=dtype)


def load_narrowed(
    folder: Path,
    weights: WeightFiles,
    sizes: RecordedSizes,
    config: Any,
    adapter: Adapter,
    dtype: torch.dtype,
    spread: Spread | None = None,
) -> PreTrainedModel:
    """A pruned model: build the architecture without memory, narrow it as recorded, then read the weights."""
    if weights.tensors is None:
        raise LoadError(f"The weights in {folder} are pickles, which a pruned model has none of; prune and save again.")
    forget_sizes(config)
    module = shell(config, adapter, dtype)
    if sizes.residual_width is not None:
        check_sliceable(adapter, config, str(folder))
        basis = torch.empty(config.hidden_size, sizes.residual_width, dtype=torch.float64, device="meta")
        module = narrow_residual(module, adapter, [basis] * (1 + 2 * len(adapter.layers(module))))
    headless = _without_heads(module, adapter, sizes.units)
    module = slice_module(module, adapter, {key: range(count) for key, count in sizes.units.items()})
    renamings = _renamings(module)
    files = {}
    state = {}
    for file, key, value in read_tensors(weights.files):
        if not key.endswith("rotary_emb.inv_freq"):  # which old checkpoints hold, though it follows from the config
            name = _renamed(key, renamings)
            files[name], state[name] = (file, key), value if spread else value.to(dtype)
    state = _without_zeros(state, module, headless)
    _untie(module, state)
    _add_biases(module, adapter, state)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    wrong = sorted(key for key, value in state.items() if shapes.get(key) != value.shape)
    if not wrong and spread is not None:
        wrong = dispatch(module, state, files, spread, dtype)
    elif not wrong:
        module.load_state_dict(state, strict=False, assign=True)
        module.tie_weights()
        wrong = [key for key, value in module.named_parameters() if value.is_meta]
    if wrong:
        raise LoadError(
            f"The weights in {folder} do not match its {sizes.record} (see {wrong[0]}); prune and save again."
        )
    if (folder / "generation_config.json").is_file():
        module.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return module


def _without_heads(module: PreTrainedModel, adapter: Adapter, units: dict[ModuleKey, int]) -> dict[str, str]:
    """The names of attentions that have no heads, and of their output projections.

    Args:
        module: at full size.
    """
    names, layers = {id(part): name for name, part in module.named_modules()}, adapter.layers(module)
    found = {}
    for block in adapter.blocks(module):
        if block.key.kind == "attention" and units.get(block.key) == 0:
            attention = getattr(*adapter.attention_owner(layers[block.key.layer]))
            found[names[id(attention)]] = names[id(block.last)]
    return found


def _without_zeros(
    state: dict[str, torch.Tensor], module: PreTrainedModel, headless: dict[str, str]
) -> dict[str, torch.Tensor]:
    """The tensors without the units of zeros that exports write where a module has none (`layer_sizes.ZEROED`)."""
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    kept = {}
    for name, tensor in state.items():
        owner = next((each for each in headless if name.startswith(f"{each}.")), None)
        if owner is None:
            kept[name] = tensor.new_empty(shapes[name]) if 0 in shapes.get(name, ()) else tensor
        elif name in (f"{owner}.bias", f"{headless[owner]}.bias"):
            kept[f"{owner}.bias"] = tensor
    return kept


def _untie(module: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Let an output layer that differs from the embedding stand for itself, whatever the config says."""
    parts = {id(part): name for name, part in module.named_modules()}
    heads = [module.get_input_embeddings(), module.get_output_embeddings()]
    tensors = [state.get(f"{parts.get(id(part))}.weight") for part in heads]
    if all(tensor is not None for tensor in tensors) and not torch.equal(*tensors):
        set_tied(module.config, False)


def _renamings(module: PreTrainedModel) -> list[WeightRenaming]:
    return [step for step in get_model_conversion_mapping(module) if isinstance(step, WeightRenaming)]


def _renamed(key: str, renamings: list[WeightRenaming]) -> str:
    """The module's own name of a tensor that transformers may have saved under an older one."""
    for renaming in renamings:
        key, _ = renaming.rename_source_key(key)
    return key


def _add_biases(module: PreTrainedModel, adapter: Adapter, state: dict[str, torch.Tensor]) -> None:
    """Add the biases that compensation gave to last linears whose architecture has none, still without memory."""
    names = {id(part): name for name, part in module.named_modules()}
    ends = [block.last for block in adapter.blocks(module)]
    for layer in adapter.layers(module):
        # An emptied module has no block, but its output projection may have got a bias.
        ends += [part for part in layer.modules() if isinstance(part, EmptyAttention)]
        ends += [part for part in layer.modules() if isinstance(part, nn.Linear) and not part.in_features]
    for last in ends:
        bias = state.get(f"{names[id(last)]}.bias")
        if bias is not None and last.bias is None:
            last.bias = nn.Parameter(torch.empty_like(bias, device="meta"), requires_grad=False)


def _origins(marker: Path, layers: int) -> tuple[int, ...]:
    """The numbers the layers had in the model they were pruned from; empty where none went."""
    origins = json.loads(marker.read_text()).get("layers", [])
    ascending = all(type(each) is int for each in origins) and origins == sorted(set(origins))
    if origins and not (ascending and len(origins) == layers):
        raise LoadError(f"{marker} names other layers than the model has; prune and save again.")
    return tuple(origins)


def restore_history(model: Model, folder: Path) -> None:
    """How the model was pruned, when `Model.save` wrote it down."""
    if (folder / MARKER).is_file():
        model.origins = _origins(folder / MARKER, model.layers)
    if (folder / "recipe.json").is_file():
        model.recipe = Recipe.read(folder / "recipe.json")
    if (folder / "report.json").is_file():
        model.report = PruningReport.from_dict(json.loads((folder / "report.json").read_text()))
