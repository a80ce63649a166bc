"""Arguments that several commands share, and the steps that read them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli.console import Console

if TYPE_CHECKING:
    from numprune import CalibrationRecipe, CalibrationStats, Model

Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, help: str, *, example: str, json: bool = True) -> Any:
    """A sub-parser with the flags every command has."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = parser.add_argument_group("output")
    if json:
        output.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    output.add_argument("--quiet", action="store_true", help="no progress bar and no notes on stderr")
    output.add_argument("--debug", action="store_true", help="print tracebacks and warnings")
    return parser


def add_model(parser: argparse.ArgumentParser, **positional: Any) -> None:
    """MODEL, --device and --dtype; `positional` changes the MODEL argument."""
    if positional.get("nargs") != "?":
        positional.setdefault("help", "embedded name (tiny-stories), hub id or folder")
    parser.add_argument("model", metavar="MODEL", **positional)
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (the default: CUDA, then MPS, then CPU), cpu, cuda, ...")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto (the default: the checkpoint's own; float32 on a CPU), float32, float16 or bfloat16",
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration",
        metavar="DATA",
        help="text or jsonl file; wikitext2, c4, ptb or tinystories; or self (the default), text the model writes;"
        " several in turn as c4,wikitext2,self or, by weights, c4=2,self=1",
    )
    group.add_argument("--samples", type=int, metavar="N", help="sequences (default 128)")
    group.add_argument("--sequence-length", type=int, metavar="L", help="tokens per sequence (default 2048)")
    group.add_argument("--seed", type=int, metavar="S", help="for drawing the sequences (default 0)")


def calibration_changes(args: argparse.Namespace) -> dict[str, Any]:
    """The calibration flags that were given, by their name in `CalibrationRecipe`."""
    return given(data=args.calibration, samples=args.samples, sequence_length=args.sequence_length, seed=args.seed)


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def load_model(name: str, args: argparse.Namespace, console: Console) -> Model:
    """`numprune.load` without the libraries' own messages."""
    quiet_libraries(console)
    return numprune.load(name, device=args.device, dtype=args.dtype)


def quiet_libraries(console: Console) -> None:
    """Stop transformers from talking; downloads show a bar only where ours does."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not console.shows_progress:
        disable_progress_bars()


def calibrate_model(model: Model, recipe: CalibrationRecipe, console: Console) -> CalibrationStats:
    """`numprune.calibrate` as the recipe says."""
    if recipe.data is None:
        raise numprune.InputError(
            "The recipe was calibrated on text it does not name; give --calibration with a file or dataset."
        )
    with console.progress() as progress:
        return numprune.calibrate(
            model,
            recipe.data,
            samples=recipe.samples,
            sequence_length=recipe.sequence_length,
            seed=recipe.seed,
            progress=progress,
        )


def describe(model: Model) -> dict[str, Any]:
    """What every JSON result says about its model."""
    from numprune.models.placement import dtype_name

    return {
        "model": model.name,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "device": str(model.device),
        "dtype": dtype_name(model.dtype),
    }
