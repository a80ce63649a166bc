"""The calibration flags that several commands share, and the step they are of."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

import numprune
from numprune.cli.console import Console
from numprune.cli.options import TEXTS, given

if TYPE_CHECKING:
    from numprune import CalibrationRecipe, CalibrationStats, Model


def add_calibration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration",
        metavar="DATA",
        help=f"{TEXTS}; or self (the default), text the model writes;"
        " several in turn as c4,wikitext2,self or, by weights, c4=2,self=1",
    )
    group.add_argument(
        "--no-bos",
        dest="bos",
        action="store_false",
        default=None,
        help="begin only documents with BOS, not every sequence, where the tokenizer adds one",
    )
    group.add_argument(
        "--text-column",
        metavar="NAME",
        help="the column of rows that holds the text or conversation (default: messages, text, content, prompt and"
        " completion, instruction and output, ...)",
    )
    group.add_argument(
        "--samples", type=int, metavar="N", help="sequences (default 128; on a CPU fewer, by the model's size)"
    )
    group.add_argument(
        "--sequence-length",
        type=int,
        metavar="L",
        help="tokens per sequence (default 2048; on a CPU fewer, by the model's size)",
    )
    group.add_argument("--seed", type=int, metavar="S", help="for drawing the sequences (default 0)")


def asked_calibration(args: argparse.Namespace, recipe: CalibrationRecipe) -> CalibrationRecipe:
    """The calibration of a recipe with the flags that were given instead of its values."""
    flags = {"data": args.calibration, "samples": args.samples, "sequence_length": args.sequence_length}
    return replace(recipe, **given(**flags, seed=args.seed, bos=args.bos, text_column=args.text_column))


def sized_for(model: Model, args: argparse.Namespace, recipe: CalibrationRecipe, console: Console) -> CalibrationRecipe:
    """The recipe with as much text as fits the device, where neither flags nor a recipe file say how much."""
    if getattr(args, "recipe", None) or None not in (args.samples, args.sequence_length):
        return recipe
    from numprune.calibration.budget import size_note, sized

    recipe = sized(model, recipe, samples=args.samples, sequence_length=args.sequence_length)
    note = size_note(recipe) if args.samples is args.sequence_length is None else None
    console.notes([note] if note else [])
    return recipe


def calibrate_model(model: Model, recipe: CalibrationRecipe, console: Console) -> CalibrationStats:
    """`numprune.calibrate_by_recipe`, with its progress."""
    if recipe.data is None:
        raise numprune.InputError(
            "The recipe was calibrated on text it does not name; give --calibration with a file or dataset."
        )
    with console.progress() as progress:
        return numprune.calibrate_by_recipe(model, recipe, progress=progress)
