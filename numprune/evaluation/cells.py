"""Cells: what was measured of one method at one ratio with one seed; their CSV file and their summary."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from numprune.errors import InputError
from numprune.files import write_text

DENSE = "dense"
"""The method of the cell that holds the model itself."""

EXCESS_LOSS = "excess loss, ln PPL pruned - ln PPL dense"
JUDGE_DISTANCE = "Fréchet distance in the judge's features"
"""What `summary` calls `measure`, in words: of language models, and of image models that come with a judge."""


@dataclass(frozen=True)
class Cell:
    """One method at one ratio with one calibration seed.

    Attributes:
        run: hash of everything else that decides the numbers; cells of different runs cannot be compared.
        model, method, ratio, seed: what was pruned, how; method "dense" with ratio 0 is the model itself.
        reached: share of the prunable parameters that went.
        parameters, bytes: of the pruned model, everything the method added included.
        seconds: scoring, choosing and pruning took, calibration left out; None for the dense model.
        tokens, nll, perplexity, kl: on held-out text: tokens predicted, nats per token, its exponential, and mean
            KL(dense, pruned) in nats per token; None for image models.
        images, recognised, fid: drawn images, the share its judge takes for the class that was asked for, and the
            Fréchet distance in the features of `extractor`; None for language models.
        decode: tokens per second decoded, the median; None when speed was not measured.
        device, threads: what it ran on.
        data: name of the held-out dataset or file, without its folder; None for image models.
        extractor: what the images were looked at with.
        sfid, inception_score, precision, recall: where the bench asked for them.
        peak_bytes: most memory in use while scoring, choosing and pruning, the dense model and the calibration's
            statistics included: torch's on a GPU, the whole process's on a CPU; None where it is not known.
    """

    run: str
    model: str
    method: str
    ratio: float
    seed: int
    reached: float
    parameters: int
    bytes: int
    seconds: float | None
    tokens: int | None
    nll: float | None
    perplexity: float | None
    kl: float | None
    images: int | None
    recognised: float | None
    fid: float | None
    decode: float | None
    device: str
    threads: int
    data: str | None = None
    extractor: str | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    peak_bytes: int | None = None

    @property
    def configuration(self) -> tuple[str, float, int]:
        """Method, ratio and seed."""
        return self.method, self.ratio, self.seed


def read_cells(path: str | Path) -> list[Cell]:
    """Cells that `write_cells` wrote; none when the file does not exist. Columns that came later may be missing.

    Raises:
        InputError: the file is something else.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
        # The last number of a file that was cut short would be another number.
        if text and (not text.endswith("\n") or any(None in [*row, *row.values()] for row in rows)):
            raise ValueError("cut short")
        return [
            Cell(**{item.name: _parsed(str(item.type), row[item.name]) for item in fields(Cell) if _given(item, row)})
            for row in rows
        ]
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} was not written by `numprune sweep --methods`; choose another file.") from error


def _given(item: Field[Any], row: Mapping[str, str]) -> bool:
    return item.name in row or item.default is MISSING


def _parsed(kind: str, text: str) -> Any:
    if not text and "None" in kind:
        return None
    return {"int": int, "float": float, "str": str}[kind.split(" ")[0]](text)


def write_cells(path: str | Path, cells: Sequence[Cell]) -> None:
    """Write cells as CSV, beside the file first, so that it is whole at any time."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in asdict(cell).items()} for cell in cells)
    write_text(path, text.getvalue())


def summary(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per method and ratio: seeds, parameters, and mean, lowest and highest over the seeds.

    `measure` is the excess loss ln PPL pruned - ln PPL dense for language models, `fid` for image models.
    """
    dense = next((cell for cell in cells if cell.method == DENSE), None)
    rows = []
    for method, ratio in dict.fromkeys((cell.method, cell.ratio) for cell in cells if cell.method != DENSE):
        group = [cell for cell in cells if (cell.method, cell.ratio) == (method, ratio)]
        if dense is not None and dense.nll is not None:
            values = [cell.nll - dense.nll for cell in group if cell.nll is not None]
        else:
            values = [cell.fid for cell in group if cell.fid is not None]
        rows.append(
            {
                "method": method,
                "ratio": ratio,
                "seeds": len(group),
                "parameters": group[0].parameters,
                "measure": sum(values) / len(values) if values else math.nan,
                "lowest": min(values, default=math.nan),
                "highest": max(values, default=math.nan),
                "kl": _mean([cell.kl for cell in group]),
                "recognised": _mean([cell.recognised for cell in group]),
                "seconds": _mean([cell.seconds for cell in group]),
                "decode": _mean([cell.decode for cell in group]),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
