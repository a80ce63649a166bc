"""Losses of trials on disk, so that a search that was stopped goes on from what it has measured."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import torch

from numprune import fitting
from numprune.allocation.trial import FittedTrial, Keep, MaskedTrial
from numprune.calibration.self_samples import cache_folder
from numprune.ranks import joined


class RememberedTrial:
    """A trial whose losses are written down as they are measured, and read again by the next search that would get
    the same: one of the same model, calibration sequences, compensation and data type, on as many threads. Several
    processes measure together, so that none may find what another has just written: they keep no file.
    """

    def __init__(self, trial: MaskedTrial | FittedTrial) -> None:
        self.trial = trial
        self.path = cache_folder() / f"search-{_identity(trial)}.jsonl"
        self._losses: dict[str, float] = {}
        self._kept = joined().alone
        if self._kept:
            self._read()

    def _read(self) -> None:
        with suppress(OSError):  # there is none yet
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError):  # a line that was cut off or damaged counts for nothing
                    key, loss, check = json.loads(line)
                    if check == _digest([key, loss]):
                        self._losses[key] = loss

    def loss(self, keep: Keep) -> float:
        """As the trial's."""
        key = _digest(sorted((str(key), list(units)) for key, units in keep.items()))
        if key not in self._losses:
            self._write(key, self.trial.loss(keep))
        return self._losses[key]

    def dense_loss(self) -> float:
        """As the trial's."""
        if "dense" not in self._losses:
            self._write("dense", self.trial.dense_loss())
        return self._losses["dense"]

    def forget(self) -> None:
        """Remove the file, when the search is through."""
        with suppress(OSError):
            self.path.unlink()

    def _write(self, key: str, loss: float) -> None:
        self._losses[key] = loss
        if not self._kept:
            return
        # The file only saves time; a full or read-only disk must not end the search.
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, loss, _digest([key, loss])]) + "\n")


def _identity(trial: MaskedTrial | FittedTrial) -> str:
    model, recipe = trial.model, trial.recipe
    fitted = trial.fit_rows.tolist() if isinstance(trial, FittedTrial) else None
    return _digest(
        [
            [
                _code(),
                torch.__version__,
                str(model.device),
                str(model.module.dtype),
                torch.get_num_threads(),
            ],
            [type(trial).__name__, trial.fingerprint, recipe.compensation, recipe.damping, recipe.scarcity],
            [trial.rows.tolist(), fitted],
        ]
    )


def _code() -> str:
    """Hash of what fits a trial: another version of it would measure other losses."""
    files = sorted(file for folder in fitting.__path__ for file in Path(folder).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
