"""Figure 5 of the paper for `numprune reproduce`: memory and speed against the ratio."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli.calibration import calibrate_model
from numprune.cli.console import Console
from numprune.cli.page import html_page, result_of
from numprune.errors import InputError
from numprune.evaluation.paper import Protocol
from numprune.files import to_json, write_text

if TYPE_CHECKING:
    from pandas import DataFrame

    from numprune import Model, SweepPoint

PROMPT_TOKENS, NEW_TOKENS, REPETITIONS = 64, 64, 5


def measure(
    model: Model,
    args: argparse.Namespace,
    protocol: Protocol,
    recipe: numprune.Recipe,
    ratios: list[float],
    stem: Path,
    console: Console,
) -> tuple[dict[str, Any], str]:
    """Measure the ratios that `stem`.csv does not hold, and write the table and its picture; the result and text."""
    from numprune.evaluation.reproduction import deviations, paper_model, protocol_notes
    from numprune.ui.figures import sweep_chart

    began = time.monotonic()
    source = recipe.calibration
    recipe = numprune.preset("paper").applied(recipe)
    repetitions, new_tokens = args.repetitions or REPETITIONS, args.new_tokens or NEW_TOKENS
    run = _run(model, recipe, repetitions, new_tokens)
    csv, page = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.html")
    table = _read(csv, run)
    missing = [ratio for ratio in (0.0, *ratios) if ratio not in set(table["ratio"])]
    if missing:
        stats = calibrate_model(model, source, console)
        with console.progress() as progress:
            scores = numprune.score(model, stats, scorer=recipe.scorer, progress=progress)
            for point in numprune.sweep(
                model,
                stats,
                scores,
                recipe,
                missing,
                repetitions=repetitions,
                prompt_tokens=PROMPT_TOKENS,
                new_tokens=new_tokens,
                progress=progress,
            ):
                table = _with(table, point, run)
                write_text(csv, table.to_csv(index=False))
    shown = table[table["ratio"].isin([0.0, *ratios])].sort_values("ratio")
    length = min(source.sequence_length, model.maximum_length or source.sequence_length)
    differing = deviations(protocol, calibration=source.data, samples=source.samples, sequence_length=length)
    known = paper_model(model, protocol.models)
    if known is None:
        differing.insert(0, f"{model.name} is not LLaMA-7B")
    notes = [
        f"Measured on {shown['device'].iloc[0]}, {shown['dtype'].iloc[0]}, median of {shown['repetitions'].iloc[0]}"
        " repetitions at batch 1, lowest and highest beside it.",
        *protocol_notes(protocol, differing),
    ]
    title = protocol.heading(model.name)
    write_text(page, html_page(title, notes, [sweep_chart(shown)]))
    result = result_of(model, title, known, notes, shown, {"csv": csv, "page": page}, began)
    return result, "\n".join([title, _text(shown), *notes])


def _run(model: Model, recipe: numprune.Recipe, repetitions: int, new_tokens: int) -> str:
    """Hash of what decides the figures besides the ratio."""
    settings = [model.fingerprint(), str(model.device), str(model.dtype), recipe.to_dict()]
    return hashlib.sha256(to_json([*settings, repetitions, new_tokens]).encode()).hexdigest()[:12]


def _read(path: Path, run: str) -> DataFrame:
    import pandas as pd

    if not path.exists():
        return pd.DataFrame({"ratio": pd.Series(dtype="float64")})
    try:
        table = pd.read_csv(path, dtype={"run": str})
        same = bool((table["run"] == run).all()) and "ratio" in table
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} was not written by `numprune reproduce figure5`; choose another --out.") from error
    if not same:
        raise InputError(f"{path} was measured with another model, device or settings; choose another --out.")
    return table


def _with(table: DataFrame, point: SweepPoint, run: str) -> DataFrame:
    """The table with one more ratio: bytes, bytes of cache per token, tokens per second, seconds to the first."""
    import pandas as pd

    speed = point.speed
    row = {"ratio": point.ratio, "reached": point.reached, "parameters": point.sizes.parameters}
    row |= {"weights": point.sizes.bytes, "kv": point.sizes.kv_bytes}
    for name in ("decode", "prefill", "first_token", "peak_bytes"):
        values = getattr(speed, name) or (float("nan"),) * 3
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    row |= {"perplexity": float("nan"), "prompt_tokens": speed.prompt_tokens, "new_tokens": speed.new_tokens}
    row |= {"repetitions": speed.repetitions, "device": speed.device, "dtype": speed.dtype, "run": run}
    new = pd.DataFrame([row])
    return new if table.empty else pd.concat([table, new], ignore_index=True)


def _text(table: DataFrame) -> str:
    import pandas as pd

    dense = table.iloc[0]
    rows = []
    for row in table.to_dict("records"):
        rows.append(
            {
                "ratio": f"{row['ratio']:g}",
                "parameters": f"{row['parameters']:,}",
                "weights MB": f"{row['weights'] / 1e6:,.1f}",
                "peak MB": "-" if pd.isna(row["peak_bytes"]) else f"{row['peak_bytes'] / 1e6:,.1f}",
                "decode tokens/s": f"{row['decode']:,.1f} ({row['decode_low']:,.1f} to {row['decode_high']:,.1f})",
                "over dense": f"{row['decode'] / dense['decode']:.2f}x",
                "first token ms": f"{1000 * row['first_token']:.1f}",
            }
        )
    return pd.DataFrame(rows).to_string(index=False)
