"""Models that read and draw images with a Llama-shaped decoder inside: Janus and Emu3.

The decoder alone is scored and pruned; vision tower, image tokenizer and the layers between stay as they are.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModelForImageTextToText

from numprune.models.adapter import register
from numprune.models.llama import LlamaAdapter


@register
class JanusAdapter(LlamaAdapter):
    """The language model of Janus, which draws codes of its image tokenizer too."""

    model_types = ("janus",)
    auto_class = AutoModelForImageTextToText

    def decoder(self, model: nn.Module) -> nn.Module:
        return model.model.language_model

    def layers(self, model: nn.Module) -> nn.ModuleList:
        return self.decoder(model).layers

    def maximum_length(self, config: Any) -> int | None:
        return super().maximum_length(config.get_text_config())


@register
class Emu3Adapter(JanusAdapter):
    """The text model of Emu3, whose vocabulary holds the image codes."""

    model_types = ("emu3",)

    def decoder(self, model: nn.Module) -> nn.Module:
        return model.model.text_model
