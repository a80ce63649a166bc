"""Images of the dense and the pruned models side by side, with what a judge sees in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from numprune.ui import engine

if TYPE_CHECKING:
    import torch

    from numprune.evaluation.images.judge import Verdicts


CSS = """
.np-pictures { display: grid; grid-template-columns: repeat(var(--n, 2), minmax(0, 1fr)); gap: .6rem; }
@media (max-width: 640px) { .np-pictures { grid-template-columns: 1fr; } }
.np-pair { display: block; width: 100%; padding: 0; border: 0; background: none; cursor: zoom-in; border-radius: 4px; }
.np-pictures section { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .6rem .75rem;
  background: var(--background-fill-secondary); color: var(--body-text-color); min-width: 0; }
.np-pictures header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .6rem;
  margin-bottom: .5rem; font-size: .85rem; color: var(--body-text-color-subdued); }
.np-pictures h3 { margin: 0; font-size: .95rem; font-weight: 600; color: var(--body-text-color);
  overflow-wrap: anywhere; }
.np-pictures div { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)); gap: .5rem; }
.np-pictures figure { margin: 0; min-width: 0; }
.np-pictures img { display: block; width: 100%; border-radius: 4px; margin: 0; }
.np-pictures img.np-small { image-rendering: pixelated; }
.np-pictures .np-what { display: block; }
.np-pictures figcaption { font-size: .78rem; line-height: 1.3; margin-top: .2rem; overflow-wrap: anywhere;
  color: var(--body-text-color-subdued); }
.np-pictures .np-wrong { color: var(--body-text-color); font-weight: 700; text-decoration: underline 1.5px #c77328;
  text-underline-offset: .2em; }
"""
SMALL = 128
"""Pixels along one side up to which an image is shown with its pixels."""
SLIDER = 384
"""Least pixels along one side of an image that is compared closely."""


@dataclass(frozen=True)
class Drawn:
    """The images one model drew.

    Attributes:
        images: (n, 3, height, width) uint8 on the CPU.
        seconds: from the first code to the last pixel, in one run.
        verdicts: None without a judge.
    """

    images: torch.Tensor
    seconds: float
    verdicts: Verdicts | None

    @classmethod
    def of(cls, images: torch.Tensor, seconds: float, verdicts: Verdicts | None) -> Drawn:
        """From floats in [0, 1]."""
        import torch

        return cls((images * 255).round().to("cpu", torch.uint8), seconds, verdicts)


@dataclass(frozen=True)
class Exhibition:
    """What every model drew for the same classes and seeds.

    Attributes:
        names: of all classes of the model, by id.
        classes, seeds: of each image.
        drawn: by model, the dense one first.
    """

    names: Sequence[str]
    classes: Sequence[int]
    seeds: Sequence[int]
    drawn: Mapping[str, Drawn]

    @property
    def titles(self) -> list[str]:
        """What each image is."""
        pairs = zip(self.classes, self.seeds, strict=True)
        return [f"{self.names[each]}, seed {seed}" for each, seed in pairs]

    def verdict(self, model: str, index: int) -> tuple[str, bool] | None:
        """What the judge says of an image, and whether it is the class that was asked for."""
        verdicts = self.drawn[model].verdicts
        if verdicts is None:
            return None
        seen = int(verdicts.classes[index])
        return f"{self.names[seen]} {float(verdicts.confidence[index]):.0%}", seen == self.classes[index]

    def html(
        self, names: Sequence[str] | None = None, *, pairs: bool = False, heads: Mapping[str, str] | None = None
    ) -> str:
        """One column for each of these models, or of all.

        Args:
            pairs: whether an image can be clicked, to be looked at beside the dense model's.
            heads: HTML that stands beside a model's name in the place of how long it drew.
        """
        frames = ""
        shown_models = [name for name in self.drawn if names is None or name in names]
        for model in shown_models:
            drawn = self.drawn[model]
            figures = ""
            for index, title in enumerate(self.titles):
                verdict, caption = self.verdict(model, index), f"<span class='np-what'>{escape(title)}</span>"
                if verdict is not None:
                    mark, kind = ("✓", "") if verdict[1] else ("✗", " class='np-wrong'")
                    caption += f" <span{kind} title='What the judge sees'>{mark} {escape(verdict[0])}</span>"
                small = " class='np-small'" if drawn.images.shape[-1] <= SMALL else ""
                alt = escape(f"{model}: {title}", quote=True)
                source = data_uri(shown(drawn.images[index]))
                image = f"<img{small} src='{source}' alt='{alt}'>"
                if pairs:
                    tip = escape(f"{title}: look closely", quote=True)
                    data = f"data-pair='{index}' data-model='{escape(model, quote=True)}'"
                    image = f"<button type='button' class='np-pair' title='{tip}' {data}>{image}</button>"
                figures += f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
            n = len(self.classes)
            speed = f"{n} images in {drawn.seconds:.2f} s: {n / drawn.seconds:.1f} images/s"
            head = (heads or {}).get(model, f"<span>{speed}, {drawn.seconds / n:.3f} s an image</span>")
            frames += f"<section><header><h3>{escape(model)}</h3>{head}</header><div>{figures}</div></section>"
        return f"<div class='np-pictures' style='--n:{len(shown_models)}'>{frames}</div>"

    def table(self) -> pd.DataFrame:
        """One row for each model and image."""
        rows = []
        for model, drawn in self.drawn.items():
            for index, (each, seed) in enumerate(zip(self.classes, self.seeds, strict=True)):
                row = {"model": model, "class": self.names[each], "seed": seed}
                if drawn.verdicts is not None:
                    row["seen_as"] = self.names[int(drawn.verdicts.classes[index])]
                    row["confidence"] = float(drawn.verdicts.confidence[index])
                rows.append(row | {"seconds_of_all": drawn.seconds})
        return pd.DataFrame(rows)

    def pair(self, model: str, index: int) -> tuple[Image.Image, Image.Image]:
        """The dense model's image and another's, large enough to look at."""
        dense = next(iter(self.drawn))
        return tuple(enlarged(shown(self.drawn[name].images[index])) for name in (dense, model))


def shown(image: torch.Tensor) -> Image.Image:
    """A Pillow picture of an image (3, height, width), uint8."""
    return engine.picture(image.float() / 255)


def enlarged(image: Image.Image) -> Image.Image:
    """At least `SLIDER` pixels wide, without smoothing."""
    scale = -(-SLIDER // image.width)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def data_uri(image: Image.Image) -> str:
    """The picture inside an address: PNG when it is small, JPEG otherwise."""
    file = io.BytesIO()
    kind = "png" if image.width <= SMALL else "jpeg"
    image.save(file, kind, **({} if kind == "png" else {"quality": 92}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
