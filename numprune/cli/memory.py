"""The flag --memory, and the model that does not fit it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numprune
from numprune.cli.calibration import sized_for
from numprune.cli.console import Console
from numprune.cli.options import quiet_libraries

if TYPE_CHECKING:
    from numprune import Model, Recipe


def add_memory(parser: argparse.ArgumentParser, what: str) -> None:
    """`what` it is that takes memory, in the help text."""
    parser.add_argument(
        "--memory",
        default="auto",
        metavar="BYTES",
        help=f"what {what} may take, such as 24G; where the model with its copy and its moments takes more it is read"
        " layer by layer from its files, and goes on after a stop (default auto: what is free on the device)",
    )


def opened_in_its_files(
    name: str, recipe: Recipe, args: argparse.Namespace, console: Console
) -> tuple[str | None, Model | None]:
    """Why a model is to be read layer by layer, and the model as it lies in its files; None where it is held."""
    from numprune.layerwise import layer_by_layer, may_be_large, memory_of
    from numprune.ranks import joined

    memory = memory_of(args.memory)
    if memory is None and not joined().from_first(lambda: may_be_large(name)):
        return None, None
    with quiet_libraries(console):
        model = numprune.load(name, device="cpu", dtype="checkpoint")
    if not model.adapter.reads_text:
        return None, None
    recipe = recipe.replace(calibration=sized_for(model, args, recipe.calibration, Console(quiet=True)))
    why = joined().from_first(lambda: layer_by_layer(model, recipe, memory, args.device, args.dtype))
    return why, model
