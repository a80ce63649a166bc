"""Images as pictures for people and files."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image

from numprune.errors import InputError

GAP = 2
"""White pixels between the images of a grid."""


def picture(image: torch.Tensor) -> Image.Image:
    """A Pillow picture of an image (3, height, width) in [0, 1]."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def picture_grid(images: torch.Tensor, *, columns: int | None = None) -> Image.Image:
    """A Pillow picture of images (batch, 3, height, width) in [0, 1], row after row.

    Args:
        columns: images in a row; by default about as many as rows.

    Raises:
        InputError: there is no image, or `columns` is below 1.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise InputError(f"The images have shape {tuple(images.shape)}; give at least one, (batch, 3, height, width).")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise InputError(f"columns is {columns}; give at least 1.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height, width = (size + GAP for size in images.shape[2:])
    grid = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "white")
    for index, image in enumerate(images):
        grid.paste(picture(image), (index % columns * width, index // columns * height))
    return grid


def png(image: Image.Image) -> bytes:
    """The PNG file of a picture."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
