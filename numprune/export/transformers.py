"""A folder that transformers opens: safetensors, config and, where layers differ, one short modelling file.

Layers that are narrower than the config's own sizes are named in its standard key `per_layer_config`, which the stock
classes do not act on; the modelling file (`_modeling_template`, filled in for the architecture) subclasses the stock
class and does. Nothing of numprune is needed to run it.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.export import _modeling_template as template
from numprune.export.engines import vllm_notes
from numprune.models.adapter import Block
from numprune.models.empty import without_memory
from numprune.models.layer_sizes import channels_name, groups_name, groups_per_unit, text_config, write_sizes
from numprune.models.model import Model
from numprune.models.written import tidy_config, write_module, write_tokenizer
from numprune.plan.keys import ModuleKey


def refusal(model: Model) -> str | None:
    """Why a narrowed stock class is not this model; None when it is."""
    reason = unknown_layers(model)
    if reason is not None:
        return reason
    written = shapes(narrowed_module(model))
    if any(written.get(name) != shape for name, shape in shapes(model.module).items() if not _emptied(model, name)):
        return "has tensors of other shapes than its numbers of heads and channels say"
    return None


def write(model: Model, folder: Path, *, progress: Progress | None, cancel: CancelEvent | None) -> list[str]:
    """Write the folder; a model with the sizes of its config gets no modelling file."""
    config = pruned_config(model)
    dtype = model.written_dtype
    write_module(with_zeros(model), folder, dtype)
    check_cancelled(cancel)
    write_companions(model, folder)
    name, narrowed = modelling_file(model), text_config(config).is_heterogeneous
    if narrowed:
        (folder / name).write_text(modelling_source(model))
    config.save_pretrained(folder)
    tidy_config(folder, dtype)
    engines = vllm_notes(model)
    if not narrowed:
        plain = "Every layer has the sizes of the config, so transformers opens the folder without custom code."
        return [plain, *engines]
    notes = [f"{name} in the folder makes the narrower layers; trust_remote_code=True runs it."]
    gone = [str(key) for key, units in model.units().items() if not units]
    if gone:
        written, own = shapes(narrowed_module(model)), shapes(model.module)
        zeros = sum(math.prod(shape) - math.prod(own.get(name, (0,))) for name, shape in written.items())
        notes.append(
            f"{', '.join(gone)} kept nothing; engines expect an attention and an MLP in every layer, so {zeros:,}"
            " parameters of zeros stand there."
        )
    return notes + engines


def snippet(model: Model, path: Path) -> str:
    pruned = text_config(pruned_config(model)).is_heterogeneous
    code = loading_code(model, path, ", trust_remote_code=True" if pruned else "")
    return code + serving_lines(path, " --trust-remote-code" if pruned else "") if model.adapter.reads_text else code


def serving_lines(path: Path, flags: str = "") -> str:
    """Commands, as comments, that serve a folder in vLLM and ask it something."""
    asked = json.dumps({"model": str(path), "prompt": "Once upon a time", "max_tokens": 64})
    return f"""

# vLLM serves the folder:
#   vllm serve {shlex.quote(str(path))}{flags}
#   curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(asked)}
"""


def loading_code(model: Model, path: Path, arguments: str = "") -> str:
    """Python that opens a folder and its tokenizer."""
    auto = model.adapter.auto_class.__name__
    names, lines = [auto], [f'model = {auto}.from_pretrained("{path}"{arguments})']
    if model.tokenizer is not None:
        names.append("AutoTokenizer")
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{path}")')
    return "\n".join([f"from transformers import {', '.join(names)}", "", *lines])


def write_companions(model: Model, folder: Path) -> None:
    """Write tokenizer with chat template, recipe and report, where the model has them."""
    write_tokenizer(model.tokenizer, model.tokenizer_files, folder)
    for name, document in (("recipe.json", model.recipe), ("report.json", model.report)):
        if document is not None:
            (folder / name).write_text(document.to_json())


def unknown_layers(model: Model) -> str | None:
    """Why transformers has no layers for a model, as half a sentence after its name; None when it has."""
    if getattr(transformers, model.architecture, None) is not type(model.module):
        return f"is a {model.architecture}, which transformers does not have"
    if model.adapter.residual_width(model.module) is not None:
        return "has a narrowed residual stream (SliceGPT), which transformers has no layers for"
    return None


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def narrowed_module(model: Model) -> PreTrainedModel:
    """The stock module at the sizes that are written, without memory."""
    stock = stock_module(model)
    described = layout(model, stock)
    stock.config = stock.base_model.config = pruned_config(model)
    template.narrow(stock.base_model, described)
    return stock


def _emptied(model: Model, name: str) -> bool:
    """Whether a tensor belongs to a layer one of whose modules kept no unit."""
    layers = layers_name(model, model.module)
    return name.startswith(f"{layers}.") and any(
        not units and name.startswith(f"{layers}.{key.layer}.") for key, units in model.units().items()
    )


def with_zeros(model: Model) -> PreTrainedModel:
    """The model's module, or one that shares its tensors and has units of zeros where a module kept none."""
    if all(model.units().values()):
        return model.module
    filled, state = narrowed_module(model), dict(model.module.state_dict())
    layers, described = layers_name(model, filled), layout(model, stock_module(model))
    for key, units in model.units().items():
        # A bias that stands for all heads lies in the attention itself, see `EmptyAttention`.
        bias = state.pop(f"{layers}.{key.layer}.{described['attention']}.bias", None)
        if key.kind == "attention" and not units and bias is not None:
            (last,) = described["attention_columns"]
            state[f"{layers}.{key.layer}.{last}.bias"] = bias
    for name, tensor in filled.state_dict().items():
        if name not in state or state[name].shape != tensor.shape:
            state[name] = torch.zeros(tensor.shape, dtype=model.dtype, device=model.device)
    filled.load_state_dict(state, assign=True)
    filled.tie_weights()
    filled.generation_config = model.module.generation_config
    return filled


def layers_name(model: Model, module: nn.Module) -> str:
    """Where the decoder layers are in a module."""
    layers = model.adapter.layers(module)
    return next(name for name, part in module.named_modules() if part is layers)


def stock_module(model: Model) -> PreTrainedModel:
    """The stock module of a model's config, at full size and without memory."""
    with without_memory():
        return model.adapter.auto_class.from_config(copy.deepcopy(model.config))


def explicit_config(config: Any) -> Any:
    """A copy of a config that says how wide a head is, which pruned numbers of heads do not tell."""
    config = copy.deepcopy(config)
    text = text_config(config)
    if getattr(text, "head_dim", None) is None:
        text.head_dim = text.hidden_size // text.num_attention_heads
    return config


def pruned_config(model: Model) -> Any:
    """The model's config with the sizes of its layers, and the modelling file that acts on them."""
    config = explicit_config(model.config)
    write_sizes(text_config(config), model.units(), _added_biases(model, stock_module(model)))
    if text_config(config).is_heterogeneous:
        name = f"Pruned{model.architecture}"
        config.architectures = [name]
        file = Path(modelling_file(model)).stem
        # vLLM builds its own model around the base model; AutoModel would open the stock one at full size.
        config.auto_map = {
            "AutoModel": f"{file}.Pruned{base_class(model)}",
            model.adapter.auto_class.__name__: f"{file}.{name}",
        }
    return config


def _added_biases(model: Model, stock: PreTrainedModel) -> set[ModuleKey]:
    """Modules whose output projection has a bias that the architecture does not give it."""
    weights, described, layers = model.module.state_dict(), layout(model, stock), layers_name(model, stock)
    added = set()
    for block in model.adapter.blocks(stock):
        layer = f"{layers}.{block.key.layer}"
        names = list(described[f"{block.key.kind}_columns"])
        if block.key.kind == "attention":
            names.append(described["attention"])  # holds the bias where no head is left
        biases = [f"{layer}.{name}.bias" for name in names]
        if block.last.bias is None and any(name in weights for name in biases):
            added.add(block.key)
    return added


def layout(model: Model, stock: PreTrainedModel) -> dict[str, Any]:
    """What the modelling file has to know of an architecture, read off its adapter's first layer."""
    layers, config = model.adapter.layers(stock), text_config(model.config)
    names = {id(module): name for name, module in layers[0].named_modules()}
    owner, attribute = model.adapter.attention_owner(layers[0])
    attention, mlp = model.adapter.blocks(stock)[:2]
    return {
        "layers": layers_name(model, stock).removeprefix(f"{stock.base_model_prefix}."),
        "attention": names[id(getattr(owner, attribute))],
        "groups": groups_name(config),
        "channels": channels_name(config),
        "attention_rows": _rows(attention, names, groups_per_unit(config)),
        "attention_columns": {names[id(attention.last)]: attention.width // groups_per_unit(config)},
        "mlp_rows": _rows(mlp, names, 1),
        "mlp_columns": {names[id(mlp.last)]: mlp.width},
    }


def _rows(block: Block, names: dict[int, str], groups: int) -> dict[str, int]:
    """Rows of a group or channel in every linear; a unit has so many groups."""
    widths = {names[id(linear)]: sum(section.width for section in sections) for linear, sections in block.inputs}
    return {name: width // groups for name, width in widths.items()}


def modelling_file(model: Model) -> str:
    return f"modeling_pruned_{model.config.model_type}.py"


def modelling_source(model: Model) -> str:
    """The template with the architecture's class and layout instead of Llama's."""
    source = Path(template.__file__).read_text()
    described = json.dumps(layout(model, stock_module(model)), indent=4)
    source = re.sub(r"(?<=^LAYOUT = )\{.*?^\}", lambda _: described, source, flags=re.DOTALL | re.MULTILINE)
    return source.replace("LlamaForCausalLM", model.architecture).replace("LlamaModel", base_class(model))


def base_class(model: Model) -> str:
    """The stock class without the output layer."""
    return type(model.module.base_model).__name__
