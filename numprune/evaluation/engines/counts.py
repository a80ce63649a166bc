"""What sizes say of a model: of one that numprune opened, and of a GGUF file that only llama.cpp does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numprune.errors import InputError, pip_install
from numprune.evaluation.footprint import sizes
from numprune.evaluation.speed_comparison import looked_up_bytes, prompt_flops
from numprune.models.model import Model


@dataclass(frozen=True)
class Counts:
    """The numbers of a model.

    Attributes:
        name: it was given by.
        parameters: of the whole model.
        read: share of the weights that decoding a token reads.
        cached: keys and values of one token, as numbers.
        prompt_flops: operations that reading one prompt takes.
        vocabulary: ids by token; empty without a tokenizer.
        rows: of the embedding.
        limit: longest sequence in tokens; None when it is not known.
    """

    name: str
    parameters: int
    read: float
    cached: int
    prompt_flops: int
    vocabulary: Mapping[str, int]
    rows: int
    limit: int | None

    def check_fits(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise InputError where a sequence is longer than the model supports."""
        if self.limit is not None and prompt_tokens + 1 + new_tokens > self.limit:
            raise InputError(
                f"{prompt_tokens} prompt tokens, the first one after them and {new_tokens} more exceed the {self.limit}"
                f" that {self.name} supports; ask for fewer."
            )

    def check_vocabulary(self, dense: Counts) -> None:
        """Raise InputError where a token of both has two ids, or one embeds more of them."""
        known = dense.vocabulary
        other = any(known.get(token, index) != index for token, index in self.vocabulary.items())
        if other or dense.rows != self.rows:
            raise InputError(
                f"{self.name} has another vocabulary than {dense.name}; give the model that it was pruned from."
            )


def of_model(model: Model, prompt_tokens: int) -> Counts:
    """The numbers of a model that numprune opened."""
    size = sizes(model)
    return Counts(
        name=model.name,
        parameters=size.parameters,
        read=1 - looked_up_bytes(model) / model.bytes,
        cached=size.kv_bytes // model.dtype.itemsize,
        prompt_flops=prompt_flops(model, prompt_tokens),
        vocabulary={} if model.tokenizer is None else model.tokenizer.get_vocab(),
        rows=model.module.get_input_embeddings().weight.shape[0],
        limit=model.maximum_length,
    )


def of_gguf(path: Path, name: str, prompt_tokens: int) -> Counts:
    """The same of a GGUF file by what it says of its layers, whether they differ or not.

    Raises:
        InputError: the gguf package is missing.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(f"GGUF files need the gguf package ({error}); run {pip_install('gguf')}.") from error
    reader = GGUFReader(path)

    def said(key: str) -> Any:
        entry = reader.get_field(key.replace("*", architecture))
        return None if entry is None else entry.contents()

    architecture = ""
    architecture = said("general.architecture")
    layers, width = said("*.block_count"), said("*.attention.key_length")
    heads, groups = (_each(said(f"*.attention.{key}"), layers) for key in ("head_count", "head_count_kv"))
    held = {t.name: int(t.n_elements) for t in reader.tensors if t.name != "rope_freqs.weight"}
    matrices = {t.name for t in reader.tensors if len(t.shape) > 1}
    table = held["token_embd.weight"]
    head = held.get("output.weight", table)
    # Queries meet every key and weigh every value.
    attention = 2 * sum(heads) * width * (prompt_tokens // 2 + 1)
    inner = sum(held[each] for each in matrices if each.startswith("blk."))
    tokens = said("tokenizer.ggml.tokens")
    return Counts(
        name=name,
        parameters=sum(held.values()),
        read=1 - (table / sum(held.values()) if "output.weight" in held else 0),
        cached=sum(groups) * (width + said("*.attention.value_length")),
        prompt_flops=2 * ((inner + attention) * prompt_tokens + head),
        vocabulary={token: index for index, token in enumerate(tokens)},
        rows=len(tokens),
        limit=said("*.context_length"),
    )


def _each(counts: int | list[int], layers: int) -> list[int]:
    """A count of every layer: one number stands for all of them."""
    return counts if isinstance(counts, list) else [counts] * layers
