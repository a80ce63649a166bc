"""Flags that several commands share, and the model they name."""

from __future__ import annotations

import argparse
import io
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli.console import Console
from numprune.files import from_json

if TYPE_CHECKING:
    from numprune import Model

Commands = argparse._SubParsersAction


TEXTS = (
    "a file (txt, json, jsonl, csv, tsv, parquet, also .gz), a folder or 'pattern*' of files; wikitext2, c4, ptb,"
    " tinystories or OWNER/NAME:CONFIG:SPLIT:COLUMN of the hub"
)
"""What a flag that names text takes, for its help."""


def add_command(
    commands: Commands, name: str, help: str, *, example: str, json: bool = True, shared: bool = False
) -> Any:
    """A sub-parser with the flags every command has; `shared` is one that several processes can work on together."""
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
    parser.set_defaults(shared=shared)
    return parser


def add_model(parser: argparse.ArgumentParser, **positional: Any) -> None:
    """MODEL, --device and --dtype; `positional` changes the MODEL argument."""
    if positional.get("nargs") != "?":
        positional.setdefault("help", "embedded name (tiny-stories), hub id, folder or GGUF file")
    parser.add_argument("model", metavar="MODEL", **positional)
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (the default: CUDA, then MPS, then CPU), cpu, cuda, ...")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto (the default: the checkpoint's own; float32 on a CPU), float32, float16 or bfloat16",
    )


def add_spread(parser: argparse.ArgumentParser) -> None:
    """--device-map and --max-memory, for commands that only run the model."""
    spread = parser.add_argument_group("a model that does not fit one device")
    spread.add_argument(
        "--device-map",
        metavar="MAP",
        help="spread it over devices, the host's memory and the disk, as accelerate does: auto, balanced,"
        " balanced_low_0, sequential, or a JSON file with a device for every module",
    )
    spread.add_argument(
        "--max-memory",
        metavar="PLACE=BYTES,...",
        help="what its weights may take where, such as 0=20GB,cpu=40GB; the rest stays on the disk (default: what is"
        " free)",
    )


def _spread(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `numprune.load` that --device-map and --max-memory stand for."""
    text, sizes = getattr(args, "device_map", None), getattr(args, "max_memory", None)
    device_map, allowed = text, None
    if text is not None and text.endswith(".json"):
        try:
            device_map = from_json(Path(text).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise numprune.InputError(f"--device-map {text} cannot be read ({error}); give a JSON file.") from error
        if not isinstance(device_map, dict):
            raise numprune.InputError(f"--device-map {text} holds no object; give a device for every module by name.")
    if sizes is not None:
        pairs = [part.partition("=") for part in sizes.split(",")]
        if not all(place and equals and size for place, equals, size in pairs):
            raise numprune.InputError(f"--max-memory is '{sizes}'; give pairs such as 0=20GB,cpu=40GB.")
        allowed = {place.strip(): size.strip() for place, _, size in pairs}
    return given(device_map=device_map, max_memory=allowed)


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def numbers(name: str, text: str, kind: type, example: str) -> list[Any]:
    """The numbers of a flag, separated by commas; `example` is named where they are none."""
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError as error:
        raise numprune.InputError(f"{name} is '{text}'; give numbers such as {example}.") from error


def load_model(name: str, args: argparse.Namespace, console: Console) -> Model:
    """`numprune.load` without the libraries' own messages."""
    with quiet_libraries(console):
        return numprune.load(name, device=args.device, dtype=args.dtype, **_spread(args))


def quiet_libraries(console: Console) -> AbstractContextManager[Any]:
    """Stop transformers and the hub's client from talking; downloads show a bar only where the command's own does.

    Returns:
        A context for loading, in which bars of its own that it has no switch for are not seen either.
    """
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if console.shows_progress:
        return nullcontext()
    disable_progress_bars()
    return redirect_stderr(io.StringIO())


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
