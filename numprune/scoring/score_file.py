"""Scores on disk: one safetensors file holds what allocation needs, and says what it was made from."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from numprune.calibration.run import within_length
from numprune.errors import InputError
from numprune.files import write_bytes
from numprune.models.embedded import embedded_model
from numprune.models.model import Model
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe
from numprune.scoring.table import ModuleScores, ScoreTable

FORMAT = "numprune scores 1"


def write_scores(path: str | Path, scores: ScoreTable, calibration: CalibrationRecipe) -> None:
    """Write scores and what they were made from.

    Every module has a tensor `3.mlp` of its units, (units,) float64. Where the channels of a unit have scores of
    their own they are there too, as `3.attention.channels`. The metadata is text: `format`, and `about`, a JSON of
    scorer, ratio, model, fingerprint, parameters, calibration and, by module, cost, remainder and width.
    """
    tensors: dict[str, np.ndarray] = {}
    modules: dict[str, Any] = {}
    for key, module in scores.modules.items():
        tensors[str(key)] = np.ascontiguousarray(module.units)
        if not np.array_equal(module.channels, np.repeat(module.units, module.width)):
            tensors[f"{key}.channels"] = np.ascontiguousarray(module.channels)
        modules[str(key)] = {"cost": module.cost, "remainder": module.remainder, "width": module.width}
    about = {
        "scorer": scores.scorer,
        "ratio": scores.ratio,
        "model": scores.model,
        "fingerprint": scores.fingerprint,
        "parameters": scores.parameters,
        "calibration": asdict(calibration),
        "modules": modules,
    }
    write_bytes(path, save(tensors, {"format": FORMAT, "about": json.dumps(about, allow_nan=False)}))


def read_scores(path: str | Path) -> tuple[ScoreTable, CalibrationRecipe]:
    """The scores that `write_scores` wrote, and the calibration they were made from.

    Raises:
        InputError: the file is something else, damaged, or holds a score that is not finite.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} holds no scores that this numprune reads; write them again.")
            about = json.loads(metadata["about"])
            modules = {
                ModuleKey.parse(name): _module(file, name, **sizes) for name, sizes in about.pop("modules").items()
            }
        calibration = CalibrationRecipe(**about.pop("calibration"))
        return ScoreTable(modules=modules, **about), calibration
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The scores in {path} cannot be read ({error}); write them again.") from error


def _module(file: Any, name: str, cost: int, remainder: int, width: int) -> ModuleScores:
    units = file.get_tensor(name)
    own = f"{name}.channels" in file.keys()  # noqa: SIM118  (not a dict)
    channels = file.get_tensor(f"{name}.channels") if own else np.repeat(units, width)
    if channels.shape != (len(units) * width,):
        raise ValueError(f"{name} has {len(channels)} channels for {len(units)} units of {width}")
    if not (np.isfinite(units).all() and np.isfinite(channels).all()):
        raise ValueError(f"{name} has a score that is NaN or infinite")
    return ModuleScores(units, channels, cost, remainder)


def shipped_file(name: str, scorer: str) -> Path | None:
    """Where the scores that ship with an embedded model lie; None for models that are not embedded."""
    folder = embedded_model(name)
    return None if folder is None else folder / f"scores-{scorer}.safetensors"


def shipped_scores(model: Model, scorer: str, calibration: CalibrationRecipe) -> ScoreTable | None:
    """The scores that ship with an embedded model, so that nobody waits for them.

    Args:
        calibration: what the model would be calibrated on to be scored.

    Returns:
        None where there are none, or where they are not of these weights in float32, or of another calibration.

    Raises:
        InputError: the file is damaged.
    """
    path = shipped_file(model.name, scorer)
    if path is None or not path.is_file() or str(model.dtype) != "torch.float32":
        return None
    scores, made_from = read_scores(path)
    # The model's own samples, which these are of, are not cut from text: neither BOS nor a column makes a difference.
    asked = replace(within_length(model, calibration), bos=made_from.bos, text_column=made_from.text_column)
    return scores if (made_from, scores.fingerprint) == (asked, model.fingerprint()) else None
