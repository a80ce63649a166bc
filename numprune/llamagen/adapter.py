"""LlamaGen among the architectures that can be pruned."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from numprune.llamagen.image_tokenizer import open_vq
from numprune.llamagen.model import JUDGE_FOLDER, LlamaGen
from numprune.llamagen.network import LlamaGenConfig, LlamaGenForImages
from numprune.models.adapter import register
from numprune.models.llama import LlamaAdapter


@register
class LlamaGenAdapter(LlamaAdapter):
    """Llama's layers under LlamaGen's rows."""

    model_types = (LlamaGenConfig.model_type,)
    reads_text = False

    def decoder(self, model: nn.Module) -> nn.Module:
        # Captions are projected once, when they are bound.
        return model.model

    def wrap(self, module: LlamaGenForImages, name: str, folder: Path) -> LlamaGen:
        judge = folder / JUDGE_FOLDER
        return LlamaGen(
            module=module,
            tokenizer=None,
            adapter=self,
            name=name,
            vq=open_vq(folder, module.config),
            judge=judge if judge.is_dir() else None,
        )
