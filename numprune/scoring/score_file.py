"""Scores on disk: one safetensors file holds what allocation and the page need, and says what it was made from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from numprune.errors import InputError
from numprune.files import write_bytes
from numprune.models.embedded import embedded_model
from numprune.models.outline import Outline
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe, check_ratio
from numprune.scoring.table import ModuleScores, ScoreTable

if TYPE_CHECKING:
    from numprune.models.model import Model

FORMAT, EARLIER = "numprune scores 2", "numprune scores 1"
"""What the metadata of a file says; files of the earlier format have one scorer and no outline of the model."""
SUFFIX = ".safetensors"
WIDEST = 2**16
"""Channels of one unit; more would be no file of a model but a way to fill the memory."""


@dataclass(frozen=True)
class ScoreFile:
    """What a file of scores holds.

    Attributes:
        tables: scores by scorer, in the order they were written; all of one model and one calibration.
        calibration: they were made from.
        outline: the model they are of, without its weights; None in files of numprune 0.1.
        digest: short hash of all of it, by which a program knows it.
    """

    tables: dict[str, ScoreTable]
    calibration: CalibrationRecipe
    outline: Outline | None = None
    digest: str = ""


def write_scores(
    path: str | os.PathLike[str],
    scores: ScoreTable | Sequence[ScoreTable],
    calibration: CalibrationRecipe,
    outline: Outline | None = None,
) -> None:
    """Write scores and what they were made from.

    Every module has a tensor `newton/3.mlp` of its units, (units,) float64: whole, so that a plan made from the file
    is the plan made from the scores, to the unit. The scores of the single channels of a head are left out: nothing
    that is made from a file needs them, and as read every channel has its unit's. The metadata is text: `format`,
    `sha256` of all that follows, and `about`, a JSON of scores (scorer and ratio each), model, fingerprint, parameters,
    calibration, outline and, by module, cost, remainder and width. A scorer takes 8 bytes a unit, 18.4 MB for the
    80 x 28,680 of a 70B model.

    Args:
        scores: of one scorer or of several, all of one model.
        outline: of the model, so that the page can open the file without it.

    Raises:
        InputError: there are no scores, two by one scorer, or some of another model.
    """
    tables = [scores] if isinstance(scores, ScoreTable) else list(scores)
    if not tables or len({table.scorer for table in tables}) < len(tables):
        raise InputError("A file holds the scores of one scorer or of several, each once; give each scorer once.")
    first = tables[0]
    owners = {(table.fingerprint, table.parameters, tuple(map(str, table.modules))) for table in tables}
    if len(owners) > 1 or (outline is not None and outline.fingerprint != first.fingerprint):
        raise InputError(f"The scores for {path} are of more than one model; write a file for each.")
    tensors: dict[str, np.ndarray] = {}
    for table in tables:
        for key, module in table.modules.items():
            tensors[f"{table.scorer}/{key}"] = np.ascontiguousarray(module.units)
    about = {
        "scores": [{"scorer": table.scorer, "ratio": table.ratio} for table in tables],
        "model": first.model,
        "fingerprint": first.fingerprint,
        "parameters": first.parameters,
        "calibration": asdict(calibration),
        "beside": first.beside,
        "influence": first.influence,
        "outline": None if outline is None else outline.to_dict(),
        "modules": {
            str(key): {"cost": module.cost, "remainder": module.remainder, "width": module.width}
            for key, module in first.modules.items()
        },
    }
    text = json.dumps(about, allow_nan=False)
    write_bytes(path, save(tensors, {"format": FORMAT, "about": text, "sha256": _check(text, tensors)}))


def _check(about: str, tensors: Mapping[str, np.ndarray]) -> str:
    """What vouches for every bit of a file."""
    seen = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        seen.update(name.encode())
        seen.update(tensors[name].tobytes())
    return seen.hexdigest()


def read_scores(path: str | os.PathLike[str]) -> tuple[ScoreTable, CalibrationRecipe]:
    """The first scores of a file that `write_scores` wrote, and the calibration they were made from.

    Raises:
        InputError: the file is something else, damaged, or holds a score that is not finite.
    """
    found = read_score_file(path)
    return next(iter(found.tables.values())), found.calibration


def read_score_file(path: str | os.PathLike[str], name: str = "") -> ScoreFile:
    """Everything in a file that `write_scores` wrote.

    Args:
        name: what errors call the file; its path by default.

    Raises:
        InputError: the file is something else, damaged, incomplete, contradicts itself, or holds a score that is not
            finite.
    """
    name = name or str(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in (FORMAT, EARLIER):
                raise InputError(
                    f"{name} holds no scores that this numprune reads; write them by numprune score MODEL --out"
                    f" FILE{SUFFIX}."
                )
            about = json.loads(metadata["about"])
            if metadata["format"] == EARLIER:
                about = {"scores": [{"scorer": about.pop("scorer"), "ratio": about.pop("ratio")}], **about}
            found = _file(file, about, earlier=metadata["format"] == EARLIER)
            # Files of earlier versions have none.
            if "sha256" in metadata:
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file, not a dict)
                if _check(metadata["about"], held) != metadata["sha256"]:
                    raise ValueError("it was changed since it was written")
        return replace(found, digest=hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = str(error) or type(error).__name__
        raise InputError(f"The scores in {name} cannot be read ({what}); write them again.") from error


def _file(file: Any, about: dict[str, Any], *, earlier: bool) -> ScoreFile:
    calibration = CalibrationRecipe(**about.pop("calibration"))
    outline, scorers, modules = about.pop("outline", None), about.pop("scores"), about.pop("modules")
    beside, influence = about.pop("beside", ()), about.pop("influence", ())
    if not all(type(each) in (int, float) and math.isfinite(each) for each in influence):
        raise ValueError("its influence is no list of numbers")
    if not all(count is None or (type(count) is int and count >= 0) for count in beside):
        raise ValueError("its beside is no list of whole numbers")
    names = set(file.keys())
    tables: dict[str, ScoreTable] = {}
    for each in scorers:
        prefix = "" if earlier else f"{each['scorer']}/"
        if not isinstance(each["scorer"], str) or each["scorer"] in tables:
            raise ValueError(f"there are two scorers called {each['scorer']}")
        check_ratio(each["ratio"])
        held = {ModuleKey.parse(name): _module(file, names, prefix + name, **sizes) for name, sizes in modules.items()}
        tables[each["scorer"]] = ScoreTable(
            modules=held, beside=tuple(beside), influence=tuple(influence), **each, **about
        )
    if not tables or not modules:
        raise ValueError("there are no scores in it")
    first = next(iter(tables.values()))
    for item in fields(ScoreTable):
        expected = {"str": str, "int": int, "float": (int, float)}.get(str(item.type), object)
        if not all(isinstance(getattr(table, item.name), expected) for table in tables.values()):
            raise ValueError(f"its {item.name} is no {item.type}")
    return ScoreFile(tables, calibration, None if outline is None else _outline(outline, first))


def _outline(given: Any, scores: ScoreTable) -> Outline:
    outline = Outline.from_dict(given)
    of_scores = {key: (len(m.units), m.width, m.cost, m.remainder) for key, m in scores.modules.items()}
    of_model = {key: (m.units, m.width, m.cost, m.remainder) for key, m in outline.modules.items()}
    same = (outline.name, outline.fingerprint, outline.parameters) == (
        scores.model,
        scores.fingerprint,
        scores.parameters,
    )
    if not same or of_scores != of_model:
        raise ValueError("its outline is of another model than its scores")
    return outline


def _module(file: Any, names: set[str], name: str, cost: int, remainder: int, width: int) -> ModuleScores:
    for what, value in (("cost", cost), ("remainder", remainder), ("width", width)):
        if not isinstance(value, int) or isinstance(value, bool) or value < (what != "remainder"):
            raise ValueError(f"{name} has {what} {value!r}")
    if width > WIDEST:
        raise ValueError(f"{name} has units of {width} channels")
    if name not in names:
        raise ValueError(f"{name} is missing")
    units = file.get_tensor(name)
    channels = file.get_tensor(f"{name}.channels") if f"{name}.channels" in names else np.repeat(units, width)
    if units.ndim != 1 or not len(units) or not (units.dtype == channels.dtype == np.float64):
        raise ValueError(f"{name} is {units.dtype} of shape {units.shape} instead of a row of float64")
    if channels.shape != (len(units) * width,):
        raise ValueError(f"{name} has {len(channels)} channels for {len(units)} units of {width}")
    if not (np.isfinite(units).all() and np.isfinite(channels).all()):
        raise ValueError(f"{name} has a score that is NaN or infinite")
    return ModuleScores(units, channels, cost, remainder)


def shipped_file(name: str, scorer: str) -> Path | None:
    """Where the scores that ship with an embedded model lie; None for models that are not embedded."""
    folder = embedded_model(name)
    return None if folder is None else folder / f"scores-{scorer}{SUFFIX}"


def shipped_scores(model: Model, scorer: str, calibration: CalibrationRecipe) -> ScoreTable | None:
    """The scores that ship with an embedded model, so that nobody waits for them.

    Args:
        calibration: what the model would be calibrated on to be scored.

    Returns:
        None where there are none, or where they are not of these weights in float32, or of another calibration.

    Raises:
        InputError: the file is damaged.
    """
    if str(model.dtype) != "torch.float32":
        return None
    scores = shipped_for(model.name, model.maximum_length, [scorer], calibration).get(scorer)
    return scores if scores is not None and scores.fingerprint == model.fingerprint() else None


def shipped_for(
    name: str, maximum_length: int | None, scorers: Sequence[str], calibration: CalibrationRecipe
) -> Mapping[str, ScoreTable]:
    """What ships with an embedded model of the scores by these scorers, from a calibration."""
    found = {}
    for scorer in scorers:
        path = shipped_file(name, scorer)
        if path is None or not path.is_file():
            continue
        scores, made_from = read_scores(path)
        # The model's own samples, which these are of, are not cut from text: neither BOS nor a column makes a
        # difference.
        length = min(calibration.sequence_length, maximum_length or calibration.sequence_length)
        asked = replace(calibration, sequence_length=length, bos=made_from.bos, text_column=made_from.text_column)
        if made_from == asked:
            found[scorer] = scores
    return found


def shipped_outline(name: str, scorer: str) -> Outline | None:
    """What can be told of an embedded model without its weights, in float32 on a CPU; None of other models."""
    path = shipped_file(name, scorer)
    return read_score_file(path).outline if path is not None and path.is_file() else None
