"""What one pruning did, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd

from numprune.files import to_json


@dataclass(frozen=True)
class ModuleReport:
    """What pruning did to one module.

    `error_before` and `error_after` are ||X W - X_S W'|| / ||X W|| of the module's output on the calibration
    data and the dense model's activations, with the kept weights as they were and as they are now. Compensations
    "residual" and "network" and healing fit to something else, on purpose, and may raise this error.
    """

    layer: int
    module: str
    units: int
    kept: int
    error_before: float
    error_after: float
    seconds: float


@dataclass(frozen=True)
class PruningReport:
    """Sizes, errors and times of one pruning.

    Bytes are those of the weights as they lie on disk, in `dtype`, the data type they are written in; `device` is where
    the work was done.
    """

    modules: list[ModuleReport]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    ratio_asked: float
    ratio_reached: float
    compensation: str
    damping: float
    device: str
    dtype: str
    seconds: float
    notes: list[str] = field(default_factory=list)

    def to_pandas(self) -> pd.DataFrame:
        """One row per module."""
        columns = [column.name for column in fields(ModuleReport)]
        return pd.DataFrame([asdict(module) for module in self.modules], columns=columns)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> PruningReport:
        """The report that `to_dict` was called on."""
        return cls(**{**given, "modules": [ModuleReport(**module) for module in given["modules"]]})

    def to_json(self) -> str:
        return to_json(self.to_dict())
