"""`numprune sweep`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli.calibration import add_calibration, asked_calibration, calibrate_model, sized_for
from numprune.cli.console import Console
from numprune.cli.options import TEXTS, Commands, add_command, add_model, describe, load_model, numbers
from numprune.files import write_text

if TYPE_CHECKING:
    from pandas import DataFrame

    from numprune import Model, Recipe, SweepPoint

EXAMPLE = """\
  numprune sweep tiny-stories --ratios 0,0.1,0.2,0.3,0.5 --samples 32

  prints one line per ratio: size, cache, time to the first token, tokens per second, peak memory and the perplexity
  on the embedded held-out stories. Ratio 0 is the model as it is. Settings other than the ratio come from --recipe.

  numprune sweep tiny-stories --methods paper,best,flap,wanda_sp --ratios 0.2,0.3 --seeds 0,1,2 --out sweep.csv

  prunes with every method at every ratio for every calibration seed and compares loss, KL to the dense model, size and
  time. Every cell is in the CSV as soon as it is measured, so that the same command goes on where it was stopped; the
  picture lies beside it as sweep.html. Methods: paper, balanced, best, healed, fast (a ratio of its is
  one of the decode time), flap, wanda_sp, magnitude, taylor, osscar, slicegpt, shortgpt, drop, random."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "sweep", "measure size, speed and perplexity at several ratios", example=EXAMPLE, shared=True
    )
    add_model(parser)
    parser.add_argument(
        "--ratios", default="0,0.1,0.2,0.3,0.5", metavar="R,R", help="pruning ratios (default 0,0.1,0.2,0.3,0.5)"
    )
    parser.add_argument("--recipe", metavar="FILE", help="a recipe.json with other settings than the defaults")
    add_calibration(parser)
    several = parser.add_argument_group("comparing methods")
    several.add_argument(
        "--methods", metavar="M,M", help="presets and other methods to compare, or all that can prune the model"
    )
    several.add_argument("--seeds", metavar="S,S", help="calibration seeds (default: that of the recipe)")
    several.add_argument("--out", metavar="FILE.csv", help="where the cells go; those it holds are not measured again")
    several.add_argument(
        "--images", type=int, default=1000, metavar="N", help="images to draw from an image model (default 1000)"
    )
    several.add_argument("--guidance", type=float, default=4.0, metavar="G", help="of these images (default 4)")
    group = parser.add_argument_group("measuring")
    text = group.add_mutually_exclusive_group()
    text.add_argument(
        "--data",
        metavar="DATA",
        help=f"{TEXTS} (default: the embedded held-out stories)",
    )
    text.add_argument("--no-perplexity", action="store_true", help="leave perplexity out, and compensation with it")
    group.add_argument(
        "--repetitions",
        type=int,
        default=5,
        metavar="N",
        help="of every timing (default 5); with --methods 0 leaves speed out",
    )
    group.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="tokens of the prompt (default 64)")
    group.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to decode (default 64)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    # A recipe checks names and numbers before the model is loaded.
    recipe = numprune.Recipe.read(args.recipe) if args.recipe else numprune.Recipe()
    recipe = recipe.replace(calibration=asked_calibration(args, recipe.calibration))
    numprune.check_scorer(recipe.scorer)
    ratios = [recipe.replace(ratio=ratio).ratio for ratio in numbers("ratios", args.ratios, float, "0,0.3,0.5")]
    if not args.methods or args.repetitions:
        console.alone("Speed is measured (--methods with --repetitions 0 leaves it out)")
    if args.methods:
        _compare(args, recipe, ratios, console)
        return
    if args.seeds or args.out:
        raise numprune.InputError("--seeds and --out belong to --methods; name the methods to compare.")
    model = load_model(args.model, args, console)
    recipe = model.adopt(recipe)
    data = None if args.no_perplexity else args.data or numprune.held_out_text()
    recipe = recipe.replace(calibration=sized_for(model, args, recipe.calibration, console))
    stats = calibrate_model(model, recipe.calibration, console)
    with console.progress() as progress:
        scores = numprune.score(model, stats, scorer=recipe.scorer, progress=progress)
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


def _compare(args: argparse.Namespace, recipe: Recipe, ratios: list[float], console: Console) -> None:
    """`--methods`: the cells that are missing in the CSV, and the picture of all of them."""
    from numprune.evaluation.cells import read_cells, summary, write_cells
    from numprune.evaluation.measurement import Bench
    from numprune.evaluation.methods import compare_methods, methods_for
    from numprune.ranks import joined

    if not args.out or not args.out.endswith(".csv"):
        raise numprune.InputError(f"--out is {args.out}; give a .csv file for the cells.")
    if args.no_perplexity:
        raise numprune.InputError("--no-perplexity leaves nothing to compare methods by; leave it out.")
    methods = None if args.methods == "all" else args.methods.split(",")
    for name in methods or ():
        numprune.preset(name)
    seeds = numbers("seeds", args.seeds, int, "0,1,2") if args.seeds else [recipe.calibration.seed]
    cells = joined().from_first(lambda: read_cells(args.out))
    model = load_model(args.model, args, console)
    # What is asked for, not what fits the device, says how long the windows of the evaluation are.
    asked = recipe.calibration
    recipe = recipe.replace(calibration=sized_for(model, args, asked, console))
    bench = Bench(
        data=args.data or numprune.held_out_text(),
        sequence_length=asked.sequence_length,
        bos=asked.bos,
        images=args.images,
        drawing={"cfg_scale": args.guidance, "top_k": 0},
        repetitions=args.repetitions,
    )
    with console.progress() as progress:
        missing = compare_methods(
            model,
            methods or methods_for(model),
            [ratio for ratio in ratios if ratio],
            bench,
            recipe=recipe,
            seeds=seeds,
            done=cells,
            progress=progress,
        )
        for cell in missing:
            cells.append(cell)
            if console.writes:
                write_cells(args.out, cells)
    table = summary(cells)
    page = args.out.removesuffix(".csv") + ".html"
    if console.writes:
        write_text(page, _page(model, table, args.data))
    console.notes(model.notes)
    result = {**describe(model), "out": args.out, "page": page, "cells": [asdict(cell) for cell in cells]}
    measure = "excess loss" if model.adapter.reads_text else "Fréchet distance"
    shown = table.rename(columns={"measure": measure}).dropna(axis=1, how="all")
    console.result(result, shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def _page(model: Model, table: DataFrame, data: str | None) -> str:
    from numprune.evaluation.cells import EXCESS_LOSS, JUDGE_DISTANCE
    from numprune.evaluation.reproduction import curves_for
    from numprune.ui.figures import methods_chart

    measure, curves = EXCESS_LOSS if model.adapter.reads_text else JUDGE_DISTANCE, curves_for(model, data)
    figure = methods_chart(table, measure, paper=curves and curves.table)
    title = f"{model.name}: {measure}"
    figure.update_layout(title=f"{title}<br>{curves.caption}" if curves else title, margin={"t": 90})
    return figure.to_html(include_plotlyjs=True, config={"responsive": True, "displaylogo": False})


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
