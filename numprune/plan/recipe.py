"""The recipe: everything a person decided, as a small JSON that the dashboard and the command line share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any

from numprune.errors import InputError
from numprune.files import from_json, to_json
from numprune.plan.keys import ModuleKey, modules_of

VERSION = 3
"""Of recipe files. Version 1 knew no `bos`: its sequences went on without BOS where the last one ended. Versions 1 and
2 knew no `scarcity`: theirs is 100; their healing trained fewer weights, and another model comes out today."""
REMOVALS = ("units", "slicegpt")
ALLOCATIONS = ("global", "uniform", "paper_printed", "none")
DEPTHS = ("none", "modules", "layers")
COMPENSATIONS = ("paper", "residual", "network", "bias", "none")
SEQUENTIAL = ("residual", "network")
"""Compensations that fit one module after the other."""


def check_ratio(ratio: float) -> None:
    """Raise InputError unless 0 <= ratio < 1; numbers of numpy count as numbers."""
    if not (isinstance(ratio, Real) and not isinstance(ratio, bool) and math.isfinite(ratio) and 0 <= ratio < 1):
        raise InputError(f"ratio is {ratio}; give a number from 0 up to but not including 1.")


@dataclass(frozen=True)
class CalibrationRecipe:
    """What the model is calibrated on; see `numprune.calibrate`.

    `data` is a dataset name, a file or "self"; None when it was texts or tokens only the caller has. `bos` is whether
    every sequence of text begins with BOS, where the tokenizer adds one; `text_column` is the column of rows that holds
    the text, None for the first that is known by its name.
    """

    data: str | None = "self"
    samples: int = 128
    sequence_length: int = 2048
    seed: int = 0
    bos: bool = True
    text_column: str | None = None

    def __post_init__(self) -> None:
        _make_plain(self, (), ("samples", "sequence_length", "seed"))


@dataclass(frozen=True)
class Recipe:
    """How to prune a model.

    Attributes:
        model: embedded name, hub id or folder; None for any.
        fingerprint: of the model the recipe was made for; another model is then refused.
        calibration: what to calibrate on.
        removal: what goes: "units", heads and channels, as everything below says; or "slicegpt", directions of the
            residual stream (`numprune.slicegpt`), which uses ratio and round_channels alone. Files call it "method".
        scorer: a name in `numprune.SCORERS`; whether there is such a scorer is checked where the model is scored.
        allocation: "global", one threshold over all modules, in parameters; "uniform", the same ratio in every
            module; "paper_printed", the threshold as the paper prints it, in units, with head scores times 4 D_h / 3;
            "none", no unit by its score, only what is dropped, forced to go or set by hand.
        ratio: share of the prunable parameters to remove, in [0, 1).
        ratios: share of units to remove, for modules that are set by hand; the others share the rest of the budget.
        suggested: whether the ratios are `numprune.suggest`'s or `numprune.choose_speedup`'s, and none was set by hand
            since.
        speedup: how many times as fast decoding is to be; `ratio`, `ratios` and `drop` are then chosen for it
            (`numprune.with_speedup`). None, the default, spends a budget of parameters.
        depth: what was chosen to go as a whole by its own score (`numprune.choose_depth`): "modules", attentions and
            MLPs; "layers", both of a layer; or "none", the default.
        depth_scorer: what that choice goes by, a name in `numprune.DEPTH_SCORERS`.
        drop: modules that go as a whole, by hand or by `depth`; a layer that loses both is left out of the model.
        keep, prune: units of a module that are kept or removed whatever their score.
        swaps: kept units of a module swapped for removed ones at a time, while that lowers the compensated loss
            (`numprune.allocation.swaps`); 0, the default, swaps none.
        compensation: "paper" (theorem 3), "residual" (against the dense residual stream), "network" (the same, and
            what feeds the units and the last norm as well), "bias" (FLAP's: the mean of what was removed becomes a
            bias) or "none".
        damping: of the compensation, as a fraction of the mean diagonal of the Gram matrix.
        scarcity: what "residual" and "network" raise the damping by, in multiples of itself, where there is one
            calibration token for every column (`numprune.fitting.sequential`).
        healing: steps of training after pruning (`numprune.fitting.healing`); 0, the default, trains nothing.
        round_heads, round_channels: kept counts become multiples of these, except in modules kept whole.
        uniform: whether every layer keeps the same number of heads and the same number of channels; which ones is
            still each layer's own choice.
        allow_empty: whether a module may lose its last unit.
    """

    model: str | None = None
    fingerprint: str | None = None
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    removal: str = "units"
    scorer: str = "newton"
    allocation: str = "global"
    ratio: float = 0.3
    ratios: dict[ModuleKey, float] = field(default_factory=dict)
    suggested: bool = False
    speedup: float | None = None
    depth: str = "none"
    depth_scorer: str = "loss"
    drop: tuple[ModuleKey, ...] = ()
    keep: dict[ModuleKey, tuple[int, ...]] = field(default_factory=dict)
    prune: dict[ModuleKey, tuple[int, ...]] = field(default_factory=dict)
    swaps: int = 0
    compensation: str = "paper"
    damping: float = 0.01
    scarcity: float = 500.0
    healing: int = 0
    round_heads: int = 1
    round_channels: int = 1
    uniform: bool = False
    allow_empty: bool = False

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        _make_plain(self, ("ratio", "damping", "scarcity"), ("swaps", "healing", "round_heads", "round_channels"))
        for name, value, known in (
            ("method", self.removal, REMOVALS),
            ("allocation", self.allocation, ALLOCATIONS),
            ("compensation", self.compensation, COMPENSATIONS),
            ("depth", self.depth, DEPTHS),
        ):
            if value not in known:
                raise InputError(f"{name} '{value}' is not known; use {', '.join(known)}.")
        for name in ("ratios", "keep", "prune"):
            by_key = {_key(key): value for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, by_key)
        for ratio in self.ratios.values():
            check_ratio(ratio)
        object.__setattr__(self, "ratios", {key: _number(ratio) for key, ratio in self.ratios.items()})
        for name in ("keep", "prune"):
            units = {key: _units(name, key, value) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, {key: value for key, value in units.items() if value})
        object.__setattr__(self, "drop", _modules(self.drop))
        for name in ("ratios", "keep", "prune"):
            again = sorted(getattr(self, name).keys() & set(self.drop))
            if again:
                raise InputError(f"The recipe drops {again[0]} as a whole and names it in {name} too; choose one.")
        for key, kept in self.keep.items():
            both = set(kept) & set(self.prune.get(key, ()))
            if both:
                raise InputError(f"Unit {min(both)} of {key} is both forced to stay and forced to go; choose one.")
        for name in ("round_heads", "round_channels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or a larger multiple.")
        by_unit = self.ratios or self.keep or self.prune or self.swaps or self.healing
        if self.removal != "units" and (by_unit or self.drop or self.depth != "none"):
            raise InputError(
                f"Method {self.removal} removes no units; leave out ratios, drop, depth, keep, prune, swaps and"
                " healing, or use method units."
            )
        if self.speedup is not None:
            object.__setattr__(self, "speedup", _speedup(self.speedup))
            if self.removal != "units":
                raise InputError(f"Method {self.removal} removes no units and reaches no speed-up; leave speedup out.")
        if self.swaps < 0:
            raise InputError(f"swaps is {self.swaps}; give 0 or a number of units such as 8.")
        if self.healing < 0:
            raise InputError(f"healing is {self.healing}; give 0 or a number of training steps such as 128.")
        if not 0 <= self.damping < float("inf"):
            raise InputError(f"damping is {self.damping}; give 0 or a positive fraction such as 0.01.")
        if not 0 <= self.scarcity < float("inf"):
            raise InputError(f"scarcity is {self.scarcity}; give 0 or a positive number such as 500.")

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some values changed, checked like a new one."""
        return replace(self, **changes)

    def at(self, ratio: float) -> Recipe:
        """The same at another ratio, for which what goes as a whole is to be chosen anew; without a speed-up, and what
        was chosen for that, since a ratio is a budget of parameters."""
        if self.speedup is not None:
            return self.without_speedup().at(ratio)
        return self.replace(ratio=ratio, drop=self.drop if self.depth == "none" else ())

    def without_speedup(self) -> Recipe:
        """The same without a speed-up and what was chosen for it."""
        if self.speedup is None or not self.suggested:
            return self.replace(speedup=None)
        chosen = {"depth": "none", "drop": ()} if self.depth != "none" else {}
        return self.replace(speedup=None, ratios={}, suggested=False, **chosen)

    def for_speedup(self, speedup: float) -> Recipe:
        """The same with a speed-up that nothing is chosen for yet."""
        whole = {"depth": self.depth, "drop": () if self.depth != "none" else self.drop}
        return self.without_speedup().replace(speedup=speedup, **whole)

    def round_to(self, key: ModuleKey) -> int:
        """The multiple that kept counts of a module are rounded to."""
        return self.round_heads if key.kind == "attention" else self.round_channels

    def check_for(self, name: str, fingerprints: Sequence[str], units: Mapping[ModuleKey, int]) -> None:
        """Raise InputError unless the recipe fits a model, given by its name, fingerprints and units per module.

        Args:
            fingerprints: today's first, then those that earlier versions gave the model.
        """
        if self.fingerprint is not None and self.fingerprint not in fingerprints:
            raise InputError(
                f"The recipe was made for {self.model or 'another model'} (fingerprint {self.fingerprint}), not for"
                f" {name} ({fingerprints[0]}); load that model or make a new recipe."
            )
        for what in ("ratios", "keep", "prune"):
            for key, value in getattr(self, what).items():
                if key not in units:
                    raise InputError(f"The recipe's {what} names {key}, which {name} does not have; correct it.")
                if what != "ratios" and not all(0 <= unit < units[key] for unit in value):
                    raise InputError(
                        f"The recipe's {what} names units of {key} outside 0 to {units[key] - 1}; correct it."
                    )
        for key in self.drop:
            if key not in units:
                raise InputError(f"The recipe drops {key}, which {name} does not have; correct it.")
        if len(self.drop) == len(units) and units:
            raise InputError(f"The recipe drops every module of {name}; leave at least one.")

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        for name in ("ratios", "keep", "prune"):
            plain[name] = {str(key): _plain(value) for key, value in sorted(getattr(self, name).items())}
        # Versions before these entries do not know them.
        plain["drop"] = [str(key) for key in self.drop]
        defaults = {"suggested": False, "speedup": None, "depth": "none", "depth_scorer": "loss", "drop": []}
        for name, default in defaults.items():
            if plain[name] == default:
                del plain[name]
        if self.calibration.text_column is None:
            del plain["calibration"]["text_column"]
        return {"version": VERSION, **{_IN_FILES.get(name, name): value for name, value in plain.items()}}

    def to_json(self) -> str:
        return to_json(self.to_dict())

    @classmethod
    def from_dict(cls, given: Any) -> Recipe:
        """Raises InputError for an unknown version, unknown keys, wrong types and values out of range."""
        if not isinstance(given, dict):
            raise InputError("A recipe is a JSON object; this is something else.")
        values = dict(given)
        version = values.pop("version", None)
        if version not in range(1, VERSION + 1):
            raise InputError(f"The recipe has version {version}; this numprune reads versions 1 to {VERSION}.")
        calibration = values.pop("calibration", {})
        if not isinstance(calibration, dict):
            raise InputError(
                "calibration in the recipe must be an object with data, samples, sequence_length, seed, bos."
            )
        if version == 1:
            calibration = {"bos": False, **calibration}
        if version < 3:
            values = {"scarcity": 100, **values}
        _check_keys(values, cls, "recipe")
        _check_keys(calibration, CalibrationRecipe, "recipe's calibration")
        attributes = {name: attribute for attribute, name in _IN_FILES.items()}
        values = {attributes.get(name, name): value for name, value in values.items()}
        return cls(calibration=CalibrationRecipe(**calibration), **values)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        try:
            given = from_json(text)
        except ValueError as error:
            raise InputError(f"The recipe is not JSON ({error}); choose a recipe.json written by numprune.") from error
        return cls.from_dict(given)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Recipe {path} cannot be read ({error}); choose a recipe.json.") from error


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "bool": (bool,),
    "tuple[ModuleKey, ...]": (list,),
}


_IN_FILES = {"removal": "method"}
"""Attributes that files call otherwise."""


def _speedup(given: Any) -> float:
    """A speed-up as a plain number; raises InputError unless it is finite and above 1."""
    try:
        value = _number(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"speedup is {given!r}; give a number above 1 such as 1.5.") from error
    if not (math.isfinite(value) and value > 1):
        raise InputError(f"speedup is {given}; give a number above 1 such as 1.5.")
    return value


def _check_keys(values: dict[str, Any], cls: type, where: str) -> None:
    known = {_IN_FILES.get(item.name, item.name): item.type for item in fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise InputError(f"The {where} has an unknown key '{key}'; known are {', '.join(known)}.")
        allowed = _TYPES.get(str(known[key]), (dict,))
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise InputError(
                f"'{key}' in the {where} is {value!r}; expected {' or '.join(t.__name__ for t in allowed)}."
            )


def _make_plain(owner: Any, numbers: Sequence[str], counts: Sequence[str]) -> None:
    """Turn the numbers of numpy and others into Python's own, which JSON can hold.

    Raises:
        InputError: a value is no number, or a count is not whole.
    """
    for name in (*numbers, *counts):
        value = getattr(owner, name)
        try:
            plain = _number(value) if name in numbers else index(value)
        except (TypeError, ValueError) as error:
            what = "a number" if name in numbers else "a whole number"
            raise InputError(f"{name} is {value!r}; give {what}.") from error
        if isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; give a number.")
        object.__setattr__(owner, name, plain)


def _number(value: Any) -> int | float:
    return value if type(value) in (int, float) else float(value)


def _key(key: ModuleKey | str | tuple[int, str]) -> ModuleKey:
    return ModuleKey.parse(key) if isinstance(key, str) else ModuleKey(*key)


def _modules(given: Any) -> tuple[ModuleKey, ...]:
    """The modules of a list in their order, each named once: as keys, or as "3.mlp" or "3" for a whole layer."""
    if not isinstance(given, list | tuple):
        raise InputError(f"drop is {given!r}; give a list of modules or layers such as ['3.mlp', '5'].")
    keys: list[ModuleKey] = []
    for each in given:
        pair = isinstance(each, tuple) and len(each) == 2
        keys += [_key(f"{each[0]}.{each[1]}")] if pair else modules_of(str(each))
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(f"The recipe drops {twice} twice; name it once.")
    return tuple(sorted(keys))


def _units(name: str, key: ModuleKey, given: Iterable[int]) -> tuple[int, ...]:
    try:
        return tuple(sorted({index(unit) for unit in given}))
    except TypeError as error:
        raise InputError(f"{name} of {key} is {given!r}; give a list of unit numbers such as [0, 3].") from error


def _plain(value: float | tuple[int, ...]) -> float | list[int]:
    return list(value) if isinstance(value, tuple) else value
