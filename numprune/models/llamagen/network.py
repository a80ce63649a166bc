"""The network: transformers' Llama over image codes, with positions in two dimensions.

One table embeds codes and conditions: rows 0 to codes - 1 are the codes of the tokenizer, then one row a class,
and last the null class that guidance needs. An image is then one row of ids, [codes + class, code 0, code 1, ...],
and everything that reads rows of ids (calibration, the residual fit, perplexity) works as for text.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from numprune.models.adapter import register
from numprune.models.llama import LlamaAdapter


@strict
class LlamaGenConfig(LlamaConfig):
    """Sizes of a LlamaGen decoder.

    Attributes:
        codes: entries of the tokenizer's codebook, which are also the logits.
        classes: classes without the null class.
        grid: codes along one side of the image.
        class_names: what the classes show, in order; None where nobody said.
    """

    model_type = "llamagen"

    codes: int = 16384
    classes: int = 1000
    grid: int = 16
    class_names: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vocab_size = self.codes + self.classes + 1
        self.max_position_embeddings = 1 + self.grid**2
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
        self.head_dim = config.head_dim
        self.theta = float(config.rope_parameters["rope_theta"])
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (batch, tokens, head_dim) in the dtype of `x`; position 0 is the condition."""
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
        condition = torch.zeros(1, self.head_dim)
        return torch.cat([condition, cells.cos()]).to(device), torch.cat([condition, cells.sin()]).to(device)


class LlamaGenForImages(LlamaForCausalLM):
    """Rows of ids in, logits over the codes out; see the module's docstring for the ids."""

    config_class = LlamaGenConfig

    def __init__(self, config: LlamaGenConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlamaModel(config)
        self.model.rotary_emb = GridRotary(config)
        self.vocab_size = config.codes
        self.lm_head = nn.Linear(config.hidden_size, config.codes, bias=False)
        self.post_init()


@register
class LlamaGenAdapter(LlamaAdapter):
    """Llama's layers under LlamaGen's rows."""

    model_types = (LlamaGenConfig.model_type,)
    reads_text = False


AutoConfig.register(LlamaGenConfig.model_type, LlamaGenConfig)
AutoModelForCausalLM.register(LlamaGenConfig, LlamaGenForImages)
