"""The network: transformers' Llama over image codes, with positions in two dimensions.

One table embeds codes and conditions: rows 0 to codes - 1 are the codes of the tokenizer, then one row a class,
and last the null class that guidance needs. An image is then one row of ids, [codes + class, code 0, code 1, ...],
and everything that reads rows of ids (calibration, the residual fit, perplexity) works as for text.

A text-conditional decoder has a caption instead of a class: as many rows of the table as its condition has
tokens, projected from the caption's features when it is opened. Captions are padded on the left with the id of a row
of zeros, which is the last of the table. Such a token sees only itself, so it stays zero in every layer (nothing has a
bias) and adds nothing to any statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from numprune.errors import LoadError


@strict
class LlamaGenConfig(LlamaConfig):
    """Sizes of a LlamaGen decoder.

    Attributes:
        codes: entries of the tokenizer's codebook, which are also the logits.
        classes: classes without the null class.
        grid: codes along one side of the image.
        class_names: what the classes show, in order; None where nobody said.
        condition_tokens: tokens before the first code: 1 for a class, 120 for a caption.
        caption_size: features of a caption's token; None for a class-conditional decoder.
        caption_lengths: tokens of each caption, the others being padding; None for a class-conditional decoder.
    """

    model_type = "llamagen"

    codes: int = 16384
    classes: int = 1000
    grid: int = 16
    class_names: list[str] | None = None
    condition_tokens: int = 1
    caption_size: int | None = None
    caption_lengths: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vocab_size = self.codes + (self.classes + 1) * self.condition_tokens + (self.caption_lengths is not None)
        self.max_position_embeddings = self.condition_tokens + self.grid**2
        # Every id is a code or a class; LlamaConfig's defaults would end an image at code 2.
        self.bos_token_id = self.eos_token_id = self.pad_token_id = None
        super().__post_init__(**kwargs)


class GridRotary(nn.Module):
    """Rotary embedding of the cell (row, column) of a code; zero at the condition, where queries and keys vanish.

    With d the head dimension, f_j = theta^(-4j/d) for j < d/4 and the d/2 angles of a cell are [row f, column f].
    """

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.condition_tokens = config.condition_tokens
        self.head_dim = config.head_dim
        self.theta = float(config.rope_parameters["rope_theta"])
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (batch, tokens, head_dim) in the dtype of `x`; the condition comes first."""
        # Made on first use: transformers does not restore buffers that a checkpoint leaves out.
        if self._tables is None or self._tables[0].device != x.device:
            # Tables that generation made must also serve training.
            with torch.inference_mode(False):
                self._tables = self._compute(x.device)
        cos, sin = self._tables
        return cos[position_ids].to(x.dtype), sin[position_ids].to(x.dtype)

    def _compute(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        half = self.head_dim // 2
        frequencies = self.theta ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
        angles = torch.arange(self.grid)[:, None] * frequencies
        rows = angles[:, None].expand(self.grid, self.grid, -1)
        cells = torch.cat([rows, rows.transpose(0, 1)], dim=-1).reshape(self.grid**2, half)
        cells = torch.cat([cells, cells], dim=-1)
        condition = torch.zeros(self.condition_tokens, self.head_dim)
        return torch.cat([condition, cells.cos()]).to(device), torch.cat([condition, cells.sin()]).to(device)


class LlamaGenDecoder(LlamaModel):
    """Llama's layers; the padding of captions is hidden from all tokens but itself."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__(config)
        self.rotary_emb = GridRotary(config)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.config.caption_lengths is not None and attention_mask is None and input_ids is not None:
            if use_cache and past_key_values is None:
                past_key_values = DynamicCache(config=self.config)
            attention_mask = self._mask(input_ids, past_key_values)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def _mask(self, ids: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """What to add to the attention logits, (batch, 1, tokens, tokens so far); the cache remembers the padding."""
        padding = ids == self.config.vocab_size - 1
        if cache is not None:
            if cache.get_seq_length():
                padding = torch.cat([cache.padding, padding], dim=1)
            cache.padding = padding
        tokens = torch.arange(padding.shape[1], device=ids.device)
        own = tokens[-ids.shape[1] :, None]
        seen = (tokens == own) | ((tokens < own) & ~padding[:, None, None])
        return torch.zeros(seen.shape, dtype=self.dtype, device=ids.device).masked_fill(
            ~seen, torch.finfo(self.dtype).min
        )


class CaptionProjection(nn.Module):
    """From features of a text encoder to the decoder's embedding, and the features that stand for no caption."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_size, config.hidden_size, bias=False)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.null = nn.Parameter(torch.zeros(config.condition_tokens, config.caption_size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., hidden) of features (..., caption_size)."""
        return self.fc2(nn.functional.gelu(self.fc1(features), approximate="tanh"))


class LlamaGenForImages(LlamaForCausalLM):
    """Rows of ids in, logits over the codes out; see the module's docstring for the ids."""

    config_class = LlamaGenConfig

    def __init__(self, config: LlamaGenConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlamaGenDecoder(config)
        self.vocab_size = config.codes
        self.lm_head = nn.Linear(config.hidden_size, config.codes, bias=False)
        if config.caption_size is not None:
            self.caption_projection = CaptionProjection(config)
        self.post_init()


def fill(module: nn.Module, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Put weights into a module without memory; raise LoadError when they are not exactly those it needs."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    wrong = sorted(key for key, value in expected.items() if key not in weights or weights[key].shape != value)
    wrong += sorted(weights.keys() - expected.keys())
    if wrong:
        raise LoadError(f"{source} does not hold what its sizes promise (see {wrong[0]}); get it again.")
    module.load_state_dict({key: value.contiguous() for key, value in weights.items()}, assign=True)


AutoConfig.register(LlamaGenConfig.model_type, LlamaGenConfig)
AutoModelForCausalLM.register(LlamaGenConfig, LlamaGenForImages)
