"""The small classifier that judges an embedded image model, by classes and by features for the metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from numprune.errors import LoadError
from numprune.evaluation.images.features import Features
from numprune.evaluation.images.moments import Moments
from numprune.evaluation.images.references import Reference
from numprune.llamagen import LlamaGen

SPATIAL = 4
"""Channels of the last feature map that are spatial features, for sFID."""


class Judge(nn.Module):
    """A convolutional classifier of small square images, trained on real ones; an `Extractor` for the image metrics.

    Pooled features are the `width` activations before the last layer, spatial ones the first `SPATIAL` channels of
    the last feature map, probabilities those of the classes.

    Args:
        channels: of the images, 1 for grey or 3.
        size: pixels along one side, a multiple of 4.
        width: pooled features.
        data: the data set it was trained on, which names the extractor.
    """

    def __init__(self, *, channels: int, size: int, classes: int, width: int = 64, data: str = "images"):
        super().__init__()
        self.sizes = {"channels": channels, "size": size, "classes": classes, "width": width, "data": data}
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(32 * (size // 4) ** 2, width)
        self.output = nn.Linear(width, classes)

    @property
    def name(self) -> str:
        return f"{self.sizes['data']}-judge"

    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled features (n, width) and the last feature map (n, 32, size / 4, size / 4) of images as in `judge`."""
        if self.sizes["channels"] == 1:
            images = images.mean(1, keepdim=True)
        if images.shape[-1] != self.sizes["size"]:
            images = functional.interpolate(images, size=self.sizes["size"], mode="bilinear", antialias=True)
        maps = self.convolutions(images)
        return functional.relu(self.hidden(maps.flatten(1))), maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of images (n, 3 or 1, height, width), floats in [0, 1]; gradients flow."""
        return self.output(self.features(images)[0])

    @torch.inference_mode()
    def extract(self, images: torch.Tensor) -> Features:
        """Features of images (n, 3, height, width), floats in [0, 1], on the judge's device."""
        pool, maps = self.features(images.to(self.output.weight))
        return Features(pool, maps[:, :SPATIAL].flatten(1), self.output(pool).softmax(1))


@dataclass(frozen=True)
class Verdicts:
    """The classes a judge sees in n images.

    Attributes:
        classes: the class it takes each for, (n,).
        confidence: the probability it gives that class, (n,).
    """

    classes: torch.Tensor
    confidence: torch.Tensor

    def recognised(self, condition: torch.Tensor) -> float:
        """Share of images taken for the class (n,) they were made for."""
        return float((self.classes == condition.to(self.classes.device)).double().mean())


@dataclass(frozen=True)
class Panel:
    """A judge and the real images it compares with; callable as an `Extractor`.

    Attributes:
        reference: of held-out real images; None until their features were extracted.
        accuracy: share of held-out real images the judge recognises.
        n: held-out real images, which `reference` and `accuracy` are of.
    """

    judge: Judge
    reference: Reference | None
    accuracy: float
    n: int

    @property
    def name(self) -> str:
        return self.judge.name

    def __call__(self, images: torch.Tensor, /) -> Features:
        return self.judge.extract(images)

    def verdicts(self, images: torch.Tensor) -> Verdicts:
        """Of images (n, 3, height, width), floats in [0, 1]."""
        confidence, classes = self.judge.extract(images).probabilities.max(1)
        return Verdicts(classes.cpu(), confidence.cpu())

    def save(self, folder: Path) -> None:
        """Write judge.json and judge.safetensors into an existing folder."""
        pool, spatial = self.reference.pool, self.reference.spatial
        tensors = {f"judge.{key}": value for key, value in self.judge.state_dict().items()}
        tensors |= {"features": self.reference.features.half()}
        tensors |= {"pool.mean": pool.mean.float(), "pool.covariance": pool.covariance.float()}
        tensors |= {"spatial.mean": spatial.mean.float(), "spatial.covariance": spatial.covariance.float()}
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, folder / "judge.safetensors")
        facts = {"sizes": self.judge.sizes, "accuracy": self.accuracy, "n": self.n}
        (folder / "judge.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf8")


def load_panel(folder: Path) -> Panel:
    """The judge that `Panel.save` wrote, on the CPU; raises LoadError when it is missing or damaged."""
    try:
        facts = json.loads((folder / "judge.json").read_text(encoding="utf8"))
        tensors = load_file(folder / "judge.safetensors")
        judge = Judge(**facts["sizes"])
        judge.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("judge.")})
        moments = {
            kind: Moments.given(tensors[f"{kind}.mean"], tensors[f"{kind}.covariance"]) for kind in ("pool", "spatial")
        }
        reference = Reference(judge.name, moments["pool"], moments["spatial"], tensors["features"].float())
        return Panel(judge.eval().requires_grad_(False), reference, float(facts["accuracy"]), int(facts["n"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise LoadError(f"The judge in {folder} cannot be read ({reason}); copy the folder again.") from error


def panel_of(model: LlamaGen) -> Panel | None:
    """The judge that came with a model, on its device; None when it has none."""
    if model.judge is None:
        return None
    panel = load_panel(model.judge)
    panel.judge.to(model.device)
    return panel
