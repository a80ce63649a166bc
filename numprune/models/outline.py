"""What of a model can be told without its weights: names, counts, and the sizes that follow from a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from numprune.errors import InputError
from numprune.models.dtypes import dtype_name
from numprune.plan.keys import ModuleKey

if TYPE_CHECKING:
    from numprune.models.adapter import Block
    from numprune.models.model import Model
    from numprune.plan.plan import PruningPlan
    from numprune.plan.recipe import Recipe


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, exact.

    Attributes:
        parameters: of the whole model.
        bytes: memory of the weights.
        kv_bytes: memory of keys and values that one token adds to the cache of a sequence, over all layers. A
            layer with a sliding window adds them only until its window is full.
        flops: floating-point operations, two per multiply-add, of the matrix products that decode one token after
            `context` others: every linear layer and the output head, and attention over the cached keys and
            values, at most a window of them in layers that have one. Norms, activations, softmax and rotary
            embeddings are not counted.
        context: tokens in the cache when the token is decoded.
    """

    parameters: int
    bytes: int
    kv_bytes: int
    flops: int
    context: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ModuleOutline:
    """One prunable module.

    Attributes:
        units: it has.
        width: input channels of its last linear that belong to one unit.
        cached: keys and values one unit adds to the cache for a token; 0 of an MLP.
        cost: parameters that go with one unit.
        remainder: parameters that go besides when the last unit goes.
        multiply_adds: of one unit's share of the linears, for one token.
        itemsize: bytes of one weight.
    """

    units: int
    width: int
    cached: int
    cost: int
    remainder: int
    multiply_adds: int
    itemsize: int


@dataclass(frozen=True)
class Outline:
    """A model without its weights.

    Attributes:
        name: the embedded name, hub id or folder it came from.
        architecture: such as "LlamaForCausalLM".
        device, dtype: where its weights lay and in what type, as "cpu" and "float32".
        layers, parameters, bytes: as of the model.
        unit: what one attention unit is called: "head", or "KV group" where several query heads share keys.
        query_heads: of a layer at full size.
        maximum_length: longest sequence in tokens the model supports; None when its config does not say.
        reads_text: whether it reads text; image models read classes.
        class_names: what an image model draws, in order; empty for the others.
        fingerprint, earlier_fingerprint: today's, and the one that numprune 0.1 gave.
        windows: how many tokens the attention of each layer sees; None for all.
        cache_itemsize: bytes of one cached number.
        multiply_adds: of all linear layers and the output head for one token, attention over the cache aside.
        notes: what there is to know of the model, in sentences.
        modules: the prunable ones, attention before MLP in each layer.
        beside: parameters of every layer outside its units, which go with the layer; None where it cannot go.
    """

    name: str
    architecture: str
    device: str
    dtype: str
    layers: int
    parameters: int
    bytes: int
    unit: str
    query_heads: int
    maximum_length: int | None
    reads_text: bool
    class_names: tuple[str, ...]
    fingerprint: str
    earlier_fingerprint: str
    windows: tuple[int | None, ...]
    cache_itemsize: int
    multiply_adds: int
    notes: tuple[str, ...]
    modules: dict[ModuleKey, ModuleOutline]
    beside: tuple[int | None, ...]

    @property
    def prunable_parameters(self) -> int:
        """Parameters that belong to heads and channels."""
        return sum(module.units * module.cost for module in self.modules.values())

    def adopt(self, recipe: Recipe) -> Recipe:
        """A recipe with the name and fingerprint of this model; raises InputError as `Model.adopt` does."""
        units = {key: module.units for key, module in self.modules.items()}
        recipe.check_for(self.name, [self.fingerprint, self.earlier_fingerprint], units)
        return recipe.replace(model=self.name, fingerprint=self.fingerprint)

    def sizes(self, plan: PruningPlan | None = None, *, context: int = 1000) -> Sizes:
        """What `numprune.sizes` says of the model."""
        if context < 0:
            raise InputError(f"context is {context}; give 0 or a positive number of tokens.")
        if plan is not None and plan.units != {key: module.units for key, module in self.modules.items()}:
            raise InputError(f"The plan belongs to another model than {self.name}; make it for this one.")
        parameters, weight_bytes, multiply_adds = self.parameters, self.bytes, self.multiply_adds
        seen = [context + 1 if window is None else min(context + 1, window) for window in self.windows]
        # An emptied attention caches one number each for key and value, see EmptyAttention.
        cached = dict.fromkeys(range(self.layers), 2)
        for key, module in self.modules.items():
            kept = module.units if plan is None else len(plan.keep[key])
            removed = module.units - kept
            removed_parameters = removed * module.cost + (0 if kept else module.remainder)
            parameters -= removed_parameters
            weight_bytes -= removed_parameters * module.itemsize
            multiply_adds -= removed * module.multiply_adds
            if key.kind == "attention" and kept:
                cached[key.layer] = kept * module.cached
                # Queries are as wide as the input of the last linear; they meet every key and weigh every value.
                multiply_adds += 2 * kept * module.width * seen[key.layer]
        itemsizes = {key.layer: module.itemsize for key, module in self.modules.items()}
        for layer in () if plan is None else plan.gone:
            parameters -= self.beside[layer]
            weight_bytes -= self.beside[layer] * itemsizes[layer]
            cached[layer] = 0
        return Sizes(
            parameters=parameters,
            bytes=weight_bytes,
            kv_bytes=sum(cached.values()) * self.cache_itemsize,
            flops=2 * multiply_adds,
            context=context,
        )

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain | {"modules": {str(key): asdict(module) for key, module in self.modules.items()}}

    @classmethod
    def from_dict(cls, given: Any) -> Outline:
        """Raises InputError for what is no outline: a missing or unknown entry, a wrong type, a negative number."""
        if isinstance(given, Mapping) and "beside" not in given:
            # Of an earlier version, by which no layer went.
            given = {**given, "beside": [None] * len(given.get("windows", ()))}
        values = _checked(given, cls, "The outline of the model")
        modules = values.pop("modules")
        outline = cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()},
            modules={
                ModuleKey.parse(name): ModuleOutline(**_checked(module, ModuleOutline, f"Module {name}"))
                for name, module in modules.items()
            },
        )
        outline._check()
        return outline

    def _check(self) -> None:
        for what, values in (("window", self.windows), ("parameters beside the units", self.beside)):
            if len(values) != self.layers or not all(value is None or _whole(value) for value in values):
                raise InputError(f"The outline of the model does not name the {what} of every layer; write it again.")
        if not all(isinstance(text, str) for text in (*self.notes, *self.class_names)):
            raise InputError("The outline of the model has a note that is no text; write the file again.")
        for key, module in self.modules.items():
            if key.layer >= self.layers or module.units < 1 or module.width < 1:
                raise InputError(f"The outline of the model has {key}, which it cannot have; write the file again.")
        if self.parameters < self.prunable_parameters:
            raise InputError("The outline of the model counts fewer parameters than its units have; write it again.")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "tuple[str, ...]": (list, tuple),
    "tuple[int | None, ...]": (list, tuple),
    "dict[ModuleKey, ModuleOutline]": (dict,),
}


def _checked(given: Any, cls: type, what: str) -> dict[str, Any]:
    """The entries of a plain dictionary, all of them there and of their types."""
    known = {item.name: str(item.type) for item in fields(cls)}
    if not isinstance(given, Mapping) or given.keys() != known.keys():
        named = given.keys() ^ known.keys() if isinstance(given, Mapping) else known
        raise InputError(f"{what} lacks or has too much of {', '.join(sorted(map(str, named)))}; write the file again.")
    for name, kind in known.items():
        value, allowed = given[name], _TYPES[kind]
        right = isinstance(value, allowed) and isinstance(value, bool) == (bool in allowed)
        if not right or (isinstance(value, int) and value < 0):
            raise InputError(f"{what} has {name} {str(value)[:40]!r}, which is no {kind}; write the file again.")
    return dict(given)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def outline_of(model: Model) -> Outline:
    """What can be told of a model without its weights. Reads all weights once, for the fingerprint."""
    return counted(model, model.fingerprint(), model.earlier_fingerprint())


def counted(model: Model, fingerprint: str = "", earlier_fingerprint: str = "") -> Outline:
    """The same, with fingerprints that are known; no weight is read."""
    from torch import nn
    from transformers import DynamicCache

    used = {*model.adapter.decoder(model.module).modules(), model.module.get_output_embeddings()}
    config = model.config.get_text_config()
    # transformers decides in this class which layers have a window.
    layers = DynamicCache(config=model.config).layers
    groups = getattr(config, "num_key_value_heads", None)
    return Outline(
        name=model.name,
        architecture=model.architecture,
        device=str(model.device),
        dtype=dtype_name(model.dtype),
        layers=model.layers,
        parameters=model.parameters,
        bytes=model.bytes,
        unit="head" if groups in (None, config.num_attention_heads) else "KV group",
        query_heads=config.num_attention_heads,
        maximum_length=model.maximum_length,
        reads_text=model.adapter.reads_text,
        class_names=() if model.adapter.reads_text else tuple(model.class_names),
        fingerprint=fingerprint,
        earlier_fingerprint=earlier_fingerprint,
        windows=tuple(layer.sliding_window if layer.is_sliding else None for layer in layers),
        cache_itemsize=model.dtype.itemsize,
        multiply_adds=sum(m.in_features * m.out_features for m in used if isinstance(m, nn.Linear)),
        notes=tuple(model.notes),
        modules={block.key: _module(block) for block in model.blocks},
        beside=model.beside,
    )


def _module(block: Block) -> ModuleOutline:
    inputs = [(linear, section.width) for linear, sections in block.inputs for section in sections]
    # Out-features of the inputs that belong to one unit: of queries, keys and values in attention.
    rows = sum(width for _, width in inputs)
    return ModuleOutline(
        units=block.units,
        width=block.width,
        cached=rows - block.width if block.key.kind == "attention" else 0,
        cost=block.cost,
        remainder=block.remainder,
        multiply_adds=sum(linear.in_features * width for linear, width in inputs)
        + block.width * block.last.out_features,
        itemsize=block.last.weight.element_size(),
    )
