"""What was measured in engines, as data, and the JSON file it is kept in. Needs no torch."""

from __future__ import annotations

import json
import types
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pandas as pd

from numprune.errors import InputError

KIND = "numprune bench engines, version 1"
"""What the file of a comparison says it is."""

LARGEST = 1e18
"""No size or speed is larger."""
LONGEST, MOST = 5000, 200
"""Characters of a text, and rows, that a file may have: more of them is not what a page can show."""

Spread = tuple[float, float, float]
"""Median, lowest and highest."""


@dataclass(frozen=True)
class Measured:
    """One model in one engine at one batch.

    Attributes:
        decode, prefill: tokens per second over all sequences.
        first_token: seconds from the prompts to the first token of every sequence.
        peak_bytes: memory at the peak of the runs: what the process held beyond what it held before it opened the
            model; with transformers weights and growth, as `numprune.Speed` has it. None where it is not known.
        kv_bytes: keys and values of all sequences when a run ends, counted: heads that are left, in the type that the
            engine keeps them in. What an engine reserves or pads is not in it.
    """

    decode: Spread
    prefill: Spread
    first_token: Spread
    peak_bytes: int | None
    kv_bytes: int


@dataclass(frozen=True)
class AtBatch:
    """Both models in one engine at one batch.

    Attributes:
        batch: sequences at once.
        refused: why it was not measured, in words; the measurements are None then.
        dense, pruned: what was measured.
        decode_gain, prefill_gain: the pruned model's speed over the dense one's, run by run.
        decode_promised: bytes of weights and cache that a decoded token reads, dense over pruned.
        prefill_promised: operations that the prompts take, dense over pruned.
    """

    batch: int
    refused: str | None
    dense: Measured | None
    pruned: Measured | None
    decode_gain: Spread | None
    prefill_gain: Spread | None
    decode_promised: float
    prefill_promised: float


@dataclass(frozen=True)
class InEngine:
    """One model as an engine opened it.

    Attributes:
        runs_as: the class or architecture of the engine.
        dtype: of the weights.
        weights: their bytes.
    """

    runs_as: str
    dtype: str
    weights: int


@dataclass(frozen=True)
class EngineResult:
    """Both models in one engine.

    Attributes:
        engine: its name in `ENGINES`.
        version, device: of the engine, and what it ran on; None where it did not come to that.
        refused: why it does not run a model, in words; None where it runs both.
        dense, pruned: how it opened them.
        batches: one of each that was asked for, in order; none where it was refused.
    """

    engine: str
    version: str | None
    device: str | None
    refused: str | None
    dense: InEngine | None
    pruned: InEngine | None
    batches: list[AtBatch]


@dataclass(frozen=True)
class Counted:
    """A model: the name it was given by, and its parameters."""

    name: str
    parameters: int


@dataclass(frozen=True)
class EngineComparison:
    """A dense and a pruned model, timed in turn in every engine.

    Attributes:
        kind: `KIND`.
        dense, pruned: the models.
        prompt_tokens, new_tokens: of a run; the first token after the prompt is not among the new ones.
        repetitions: timed runs of each model in each engine at each batch, after one to warm up.
        threads: of every engine on a CPU.
        machine: the processor's and the GPU's names.
        engines: in the order they were asked for.
    """

    kind: str
    dense: Counted
    pruned: Counted
    prompt_tokens: int
    new_tokens: int
    repetitions: int
    threads: int
    machine: str
    engines: list[EngineResult]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> EngineComparison:
        """What `numprune bench engines --out` wrote.

        Raises:
            InputError: the file is something else.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            found = _read(cls, value, "the file")
            if found.kind != KIND:
                raise _Unfit(f"it says it is '{found.kind[:60]}'")
            _check(found)
        except (OSError, ValueError, RecursionError) as error:  # bytes that are no text, too
            what = str(error) if isinstance(error, _Unfit) else "it is not JSON that can be read"
            raise InputError(
                f"{path.name} was not written by `numprune bench engines --out` ({what}); choose another file."
            ) from error
        return found

    def to_pandas(self) -> pd.DataFrame:
        """One row per engine, batch and model: medians with lowest and highest, gains, promises, what it ran on."""
        rows = []
        for result in self.engines:
            for at in result.batches:
                for role, measured, opened in (
                    ("dense", at.dense, result.dense),
                    ("pruned", at.pruned, result.pruned),
                ):
                    if measured is None:
                        continue
                    row: dict[str, Any] = {"engine": result.engine, "version": result.version, "model": role}
                    row |= {"batch": at.batch, "device": result.device, **asdict(opened)}
                    spreads = {name: getattr(measured, name) for name in ("decode", "prefill", "first_token")}
                    if role == "pruned":
                        spreads |= {"decode_gain": at.decode_gain, "prefill_gain": at.prefill_gain}
                        row |= {name: getattr(at, name) for name in ("decode_promised", "prefill_promised")}
                    for name, values in spreads.items():
                        row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
                    row |= {"peak_bytes": measured.peak_bytes, "kv_bytes": measured.kv_bytes}
                    rows.append(row)
        return pd.DataFrame(rows)


class _Unfit(ValueError):
    """A value that is not what a comparison has there."""


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as an instance of a type of this file, nothing missing, nothing more, every number finite.

    Raises:
        _Unfit: it is none; the message says where.
    """
    origin = get_origin(kind)
    if origin is types.UnionType:
        (kind,) = (each for each in get_args(kind) if each is not type(None))
        return None if value is None else _read(kind, value, where)
    if origin is list:
        (inner,) = get_args(kind)
        if not isinstance(value, list):
            raise _Unfit(f"{where} is no list")
        return [_read(inner, each, f"{where}[{at}]") for at, each in enumerate(value)]
    if origin is tuple:
        inner = get_args(kind)
        if not isinstance(value, list) or len(value) != len(inner):
            raise _Unfit(f"{where} does not hold {len(inner)} numbers")
        return tuple(_read(each, part, where) for each, part in zip(inner, value, strict=True))
    if is_dataclass(kind):
        names = [item.name for item in fields(kind)]
        if not isinstance(value, dict) or set(value) != set(names):
            raise _Unfit(f"{where} does not hold {', '.join(names[:3])} and so on")
        hints = get_type_hints(kind)
        return kind(**{name: _read(hints[name], value[name], name) for name in names})
    if kind is str and isinstance(value, str) and len(value) <= LONGEST:
        return value
    if kind in (int, float) and type(value) in (int, kind) and 0 <= value <= LARGEST:  # NaN is neither
        return kind(value)
    wanted = "text" if kind is str else f"{kind.__name__} of zero or more"
    raise _Unfit(f"{where} is no {wanted}")


def _check(found: EngineComparison) -> None:
    """Raise where measurements contradict what is said of them."""
    rows = [(result.engine, at.batch) for result in found.engines for at in result.batches]
    if len(set(rows)) < len(rows) or len({result.engine for result in found.engines}) < len(found.engines):
        raise _Unfit("an engine or a batch is there twice")
    if len(rows) + len(found.engines) > MOST:
        raise _Unfit(f"it has more than {MOST} rows")
    for result in found.engines:
        if result.refused is None and None in (result.version, result.device, result.dense, result.pruned):
            raise _Unfit(f"{result.engine} has neither run nor refused")
        for at in result.batches:
            values = (at.dense, at.pruned, at.decode_gain, at.prefill_gain)
            if (at.refused is None) != (None not in values) or (at.refused is not None and any(values)):
                raise _Unfit(f"batch {at.batch} of {result.engine} was neither measured nor refused")
            spreads = [each for each in (at.decode_gain, at.prefill_gain) if each is not None]
            spreads += [getattr(m, n) for m in (at.dense, at.pruned) if m for n in ("decode", "prefill", "first_token")]
            if not all(low <= middle <= high for middle, low, high in spreads):
                raise _Unfit(f"batch {at.batch} of {result.engine} has a median outside its range")
