"""`numprune score`."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numprune
from numprune.cli.calibration import add_calibration, asked_calibration, calibrate_model, sized_for
from numprune.cli.console import Console
from numprune.cli.memory import add_memory, opened_in_its_files
from numprune.cli.options import Commands, add_command, add_model, describe, load_model
from numprune.files import write_text

SUFFIX = ".safetensors"

if TYPE_CHECKING:
    import pandas as pd

    from numprune.models import Model
    from numprune.plan import CalibrationRecipe
    from numprune.scoring import ScoreTable

EXAMPLE = """\
  numprune score tiny-stories --samples 32 --sequence-length 128 --out scores.csv

  prints the lowest, median and highest score of every module, and writes one line per head and channel.

  numprune score tiny-stories --against wanda_sp --samples 32 --sequence-length 128

  adds how far both methods agree on the order of the units; --json also names the units they disagree on.

  numprune score tiny-stories --method fisher,newton --out scores.safetensors
  python app.py --scores scores.safetensors

  keeps the scores with everything the dashboard needs, which then opens on a machine without the model; where the
  model does not fit --memory either, it is scored layer by layer."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "score", "show how much every head and channel matters", example=EXAMPLE, shared=True
    )
    add_model(parser)
    add_memory(parser, "scoring")
    add_calibration(parser)
    parser.add_argument(
        "--method",
        metavar="NAMES",
        help="newton (the default: the paper's), fisher, newton_loop, newton_boxed, newton_greedy, osscar, taylor,"
        " flap, wanda_sp, magnitude or random; several with commas between them, for a file that ends in .safetensors",
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
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the scores of all units: as CSV, or as FILE.safetensors, which numprune serve --scores opens"
        " without the model (8 bytes a unit and method)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    # A recipe checks names and numbers before the model is loaded.
    first, *others = _methods(args.method)
    recipe = numprune.Recipe(
        calibration=asked_calibration(args, numprune.CalibrationRecipe()),
        ratio=0.5 if args.score_ratio is None else args.score_ratio,
        scorer=first,
    )
    for name in filter(None, (first, *others, args.against)):
        numprune.check_scorer(name)
    whole = args.out is not None and args.out.endswith(SUFFIX)
    if others and not whole:
        raise numprune.InputError(
            f"--method names {1 + len(others)} methods; give one, or --out FILE{SUFFIX} to keep the scores of all."
        )
    names = list(dict.fromkeys(filter(None, (first, *others, args.against))))
    why, filed = opened_in_its_files(args.model, recipe, args, console)
    model = load_model(args.model, args, console) if why is None else filed
    source = sized_for(model, args, recipe.calibration, console)
    if why is None:
        tables, source, notes = _held(model, source, names, recipe.ratio, console)
    else:
        tables, source, notes = _by_layers(model, source, names, recipe.ratio, args, console)
        notes.append(why)
    scores, units = tables[first], tables[first].to_pandas()
    if whole and console.writes:
        from numprune.models.outline import outline_of

        kept = [tables[name] for name in (first, *others)]
        numprune.write_scores(args.out, kept, source, outline_of(model))
    elif args.out and console.writes:
        write_text(args.out, units.to_csv(index=False))
    table = _per_module(units)
    if args.against:
        compared = numprune.agreement(scores, tables[args.against], ratio=recipe.ratio)
        columns = ["spearman", "removed", "both", *(["only_first", "only_second"] if console.json else [])]
        table = table.join(compared[columns])
    console.notes([*model.notes, *notes])
    result = {
        **describe(model),
        "fingerprint": scores.fingerprint,
        "method": scores.scorer,
        "against": args.against,
        "ratio": scores.ratio,
        "calibration": {
            "data": source.data,
            "samples": source.samples,
            "sequence_length": source.sequence_length,
            "tokens": source.samples * source.sequence_length,
            "seed": source.seed,
        },
        "modules": table.to_dict("records"),
        "notes": notes,
        "seconds": time.monotonic() - began,
    }
    console.result(result, table.to_string(index=False, float_format="{:.4f}".format))


Scored = tuple[dict[str, "ScoreTable"], "CalibrationRecipe", list[str]]
"""Tables by the names of their methods, what they were calibrated on, and notes."""


def _held(model: Model, source: CalibrationRecipe, names: list[str], ratio: float, console: Console) -> Scored:
    stats, tables = calibrate_model(model, source, console), {}
    for name in names:
        with console.progress() as progress:
            tables[name] = numprune.score(model, stats, scorer=name, ratio=ratio, progress=progress)
    return tables, stats.source, list(stats.notes)


def _by_layers(
    model: Model, source: CalibrationRecipe, names: list[str], ratio: float, args: argparse.Namespace, console: Console
) -> Scored:
    from numprune.ranks import joined

    where = {"ratio": ratio, "device": args.device, "dtype": args.dtype}
    # Beside the file, where a run that was stopped is looked for; nowhere where nothing is written.
    with nullcontext(args.out) if args.out else TemporaryDirectory() as place, console.progress() as progress:
        folder = f"{args.out}.layers" if args.out else joined().from_first(lambda: f"{place}/scores")
        tables, used, notes = numprune.score_layerwise(model, names, source, folder, progress=progress, **where)
    return tables, used, [note for note in notes if note not in model.notes]


def _methods(text: str | None) -> list[str]:
    """The names of methods, each once."""
    names = [name.strip() for name in (text or numprune.Recipe().scorer).split(",")]
    if len(set(names)) < len(names) or not all(names):
        raise numprune.InputError(f"--method is '{text}'; give each method once, with commas between them.")
    return names


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
