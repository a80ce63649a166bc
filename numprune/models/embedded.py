"""Models and texts that ship with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

DEFAULT_MODEL = "tiny-stories"


@cache
def assets() -> Path:
    """The assets folder: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_assets"
    return installed if installed.is_dir() else package.parent / "assets"


def embedded_models() -> list[str]:
    """Names of the embedded models."""
    folder = assets() / "models"
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def embedded_model(name: str) -> Path | None:
    """Folder of an embedded model; None when there is none of that name."""
    return assets() / "models" / name if name in embedded_models() else None


def held_out_text() -> Path:
    """Stories written for this project: the default text for perplexity, never trained or calibrated on."""
    return assets() / "texts" / "stories.jsonl"
