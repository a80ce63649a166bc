"""`numprune sweep`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli.console import Console
from numprune.cli.options import (
    Commands,
    add_calibration,
    add_command,
    add_model,
    calibrate_model,
    calibration_changes,
    describe,
    load_model,
)

if TYPE_CHECKING:
    from numprune import SweepPoint

EXAMPLE = """\
  numprune sweep tiny-stories --ratios 0,0.1,0.2,0.3,0.5 --samples 32

  prints one line per ratio: size, cache, time to the first token, tokens per second, peak memory and the perplexity
  on the embedded held-out stories. Ratio 0 is the model as it is. Settings other than the ratio come from --recipe."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "sweep", "measure size, speed and perplexity at several ratios", example=EXAMPLE)
    add_model(parser)
    parser.add_argument(
        "--ratios", default="0,0.1,0.2,0.3,0.5", metavar="R,R", help="pruning ratios (default 0,0.1,0.2,0.3,0.5)"
    )
    parser.add_argument("--recipe", metavar="FILE", help="a recipe.json with other settings than the defaults")
    add_calibration(parser)
    group = parser.add_argument_group("measuring")
    text = group.add_mutually_exclusive_group()
    text.add_argument(
        "--data",
        metavar="DATA",
        help="text or jsonl file, wikitext2, c4, ptb or tinystories (default: the embedded held-out stories)",
    )
    text.add_argument("--no-perplexity", action="store_true", help="leave perplexity out, and compensation with it")
    group.add_argument("--repetitions", type=int, default=5, metavar="N", help="of every timing (default 5)")
    group.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="tokens of the prompt (default 64)")
    group.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to decode (default 64)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    # A recipe checks names and numbers before the model is loaded.
    recipe = numprune.Recipe.read(args.recipe) if args.recipe else numprune.Recipe()
    calibration = {**recipe.to_dict()["calibration"], **calibration_changes(args)}
    recipe = recipe.replace(calibration=numprune.CalibrationRecipe(**calibration))
    ratios = [recipe.replace(ratio=ratio).ratio for ratio in _ratios(args.ratios)]
    model = load_model(args.model, args, console)
    units = {key: count for key, count in model.units().items() if count}
    recipe.check_for(model.name, model.fingerprint(), units)
    data = None if args.no_perplexity else args.data or numprune.held_out_text()
    stats = calibrate_model(model, recipe.calibration, console)
    with console.progress() as progress:
        scores = numprune.score(model, stats, method=recipe.scorer, progress=progress)
        points = list(
            numprune.sweep(
                model,
                stats,
                scores,
                recipe,
                ratios,
                data=data,
                repetitions=args.repetitions,
                prompt_tokens=args.prompt_tokens,
                new_tokens=args.new_tokens,
                progress=progress,
            )
        )
    console.notes([*model.notes, *stats.notes])
    result = {
        **describe(model),
        "recipe": recipe.to_dict(),
        "data": None if data is None else str(data),
        "points": [point.to_dict() for point in points],
        "seconds": time.monotonic() - began,
    }
    console.result(result, _table(points))


def _ratios(text: str) -> list[float]:
    try:
        return [float(ratio) for ratio in text.split(",")]
    except ValueError as error:
        raise numprune.InputError(f"ratios is '{text}'; give numbers such as 0,0.3,0.5.") from error


def _table(points: list[SweepPoint]) -> str:
    """One line per point; the median of what was repeated."""
    import pandas as pd

    return pd.DataFrame(map(_row, points)).to_string(index=False)


def _row(point: SweepPoint) -> dict[str, Any]:
    speed = point.speed
    row = {
        "ratio": f"{point.ratio:g}",
        "reached": f"{point.reached:.4f}",
        "parameters": f"{point.sizes.parameters:,}",
        "bytes": f"{point.sizes.bytes:,}",
        "cache bytes/token": f"{point.sizes.kv_bytes:,}",
        "first token ms": f"{1000 * speed.first_token[0]:.1f}",
        "prefill tokens/s": f"{speed.prefill[0]:,.0f}",
        "decode tokens/s": f"{speed.decode[0]:,.0f}",
    }
    if speed.peak_bytes is not None:
        row["peak bytes"] = f"{speed.peak_bytes[0]:,.0f}"
    if point.perplexity is not None:
        row["perplexity"] = f"{point.perplexity:.3f}"
    return row
