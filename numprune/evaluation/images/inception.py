"""Inception-v3 as ADM uses it (Dhariwal and Nichol 2021)."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from numprune.errors import LoadError, pip_install
from numprune.evaluation.images.features import Features
from numprune.models.hooks import hooked
from numprune.models.placement import resolve_device

INCEPTION = "inception-v3"
"""Name of the extractor that published values and the statistics in ADM's reference batches belong to."""


class Inception:
    """Inception-v3 of 2015-12-05 as ADM uses it: what published FID, sFID, IS, precision and recall are measured on.

    Pooled features are pool_3 (2048), spatial ones the first 7 channels of mixed_6/conv (17 x 17 x 7 = 2023, the
    channel running fastest, as the reference batches have them), probabilities the softmax of the logits without
    their bias (1008). Images are rounded to 8 bits, as the reference images are.

    Args:
        module: torch-fidelity's FeatureExtractorInceptionV3 for the features "2048" and "logits_unbiased".
    """

    name = INCEPTION

    def __init__(self, module: nn.Module):
        self.module = module

    @classmethod
    def load(cls, device: str = "auto") -> Inception:
        """With torch-fidelity's published weights, which are downloaded once and kept in torch's hub folder.

        Raises:
            LoadError: torch-fidelity is not installed, or its weights cannot be had.
        """
        target = resolve_device(device)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            raise LoadError(
                f"Inception features need torch-fidelity ({error}); install it with {pip_install('images')}."
            ) from error
        try:
            module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], verbose=False)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
            raise LoadError(
                f"The weights of Inception cannot be had ({error}); connect to the network or put them at {path}."
            ) from error
        return cls(module.to(target))

    def __call__(self, images: torch.Tensor, /) -> Features:
        device = next(self.module.parameters()).device
        pixels = (images.to(device).float() * 255).round().to(torch.uint8)
        maps: list[torch.Tensor] = []
        with hooked(after={self.module.Mixed_6d.branch1x1: lambda _, output: maps.append(output)}):
            pool, logits = self.module(pixels)
        return Features(pool, maps[0][:, :7].permute(0, 2, 3, 1).flatten(1), logits.softmax(1))
