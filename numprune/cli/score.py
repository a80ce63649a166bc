"""`numprune score`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numprune
from numprune.cli.calibration import add_calibration, asked_calibration, calibrate_model, sized_for
from numprune.cli.console import Console
from numprune.cli.options import Commands, add_command, add_model, describe, given, load_model
from numprune.files import write_text

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = """\
  numprune score tiny-stories --samples 32 --sequence-length 128 --out scores.csv

  prints the lowest, median and highest score of every module, and writes one line per head and channel.

  numprune score tiny-stories --against wanda_sp --samples 32 --sequence-length 128

  adds how far both methods agree on the order of the units; --json also names the units they disagree on."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "score", "show how much every head and channel matters", example=EXAMPLE)
    add_model(parser)
    add_calibration(parser)
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="newton (the default: the paper's), fisher, newton_loop, newton_boxed, newton_greedy, osscar, taylor,"
        " flap, wanda_sp, magnitude or random",
    )
    parser.add_argument(
        "--against",
        metavar="NAME",
        help="another method: adds the rank correlation in every module, and how many of the units at the score ratio"
        " both would remove",
    )
    parser.add_argument(
        "--score-ratio", type=float, metavar="R", help="sparsity the scores are computed for (default 0.5)"
    )
    parser.add_argument("--out", metavar="FILE", help="write the scores of all units as CSV")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    # A recipe checks names and numbers before the model is loaded.
    recipe = numprune.Recipe(
        calibration=asked_calibration(args, numprune.CalibrationRecipe()),
        ratio=0.5 if args.score_ratio is None else args.score_ratio,
        **given(scorer=args.method),
    )
    for name in filter(None, (recipe.scorer, args.against)):
        numprune.check_scorer(name)
    model = load_model(args.model, args, console)
    stats = calibrate_model(model, sized_for(model, args, recipe.calibration, console), console)
    with console.progress() as progress:
        scores = numprune.score(model, stats, scorer=recipe.scorer, ratio=recipe.ratio, progress=progress)
    units = scores.to_pandas()
    if args.out:
        write_text(args.out, units.to_csv(index=False))
    table = _per_module(units)
    if args.against:
        with console.progress() as progress:
            other = numprune.score(model, stats, scorer=args.against, ratio=recipe.ratio, progress=progress)
        compared = numprune.agreement(scores, other, ratio=recipe.ratio)
        names = ["spearman", "removed", "both", *(["only_first", "only_second"] if console.json else [])]
        table = table.join(compared[names])
    console.notes([*model.notes, *stats.notes])
    result = {
        **describe(model),
        "fingerprint": scores.fingerprint,
        "method": scores.scorer,
        "against": args.against,
        "ratio": scores.ratio,
        "calibration": {
            "data": stats.data,
            "samples": stats.samples,
            "sequence_length": stats.sequence_length,
            "tokens": stats.tokens,
            "seed": stats.seed,
        },
        "modules": table.to_dict("records"),
        "notes": stats.notes,
        "seconds": time.monotonic() - began,
    }
    console.result(result, table.to_string(index=False, float_format="{:.4f}".format))


def _per_module(units: pd.DataFrame) -> pd.DataFrame:
    """One row per module: its units, what one costs, and the spread of their scores."""
    grouped = units.groupby(["layer", "module"], sort=False)
    return grouped.agg(
        units=("unit", "size"),
        parameters_per_unit=("parameters", "first"),
        lowest=("score", "min"),
        median=("score", "median"),
        highest=("score", "max"),
    ).reset_index()
