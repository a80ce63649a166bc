"""`numprune serve`."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from numprune.cli.console import Console
from numprune.cli.options import Commands, add_command, quiet_libraries
from numprune.errors import InputError
from numprune.heap import few_heaps

EXAMPLE = """\
  numprune serve --model tiny-stories --port 7860

  opens the dashboard on http://127.0.0.1:7860.

  numprune serve --scores scores.safetensors

  shows scores that were made elsewhere, of a model this machine may be too small for."""
LOCAL = ("127.0.0.1", "localhost", "::1")
SIZES = {"K": 1e3, "M": 1e6, "B": 1e9}


def add(commands: Commands) -> None:
    parser = add_command(commands, "serve", "start the dashboard", example=EXAMPLE, json=False)
    opened = parser.add_mutually_exclusive_group()
    opened.add_argument("--model", default="tiny-stories", metavar="MODEL", help="model to open (default tiny-stories)")
    opened.add_argument(
        "--scores",
        metavar="FILE",
        help="open the scores that numprune score MODEL --out FILE.safetensors wrote, without the model: its plan is"
        " made here, and numprune prune --recipe carries it out where the model is",
    )
    group = parser.add_argument_group("serving")
    # Hosts of Gradio programs, Hugging Face Spaces among them, say by these variables where to listen.
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    group.add_argument("--host", default=host, help="address to listen on (default $GRADIO_SERVER_NAME or 127.0.0.1)")
    group.add_argument("--port", type=int, default=port, help="port (default $GRADIO_SERVER_PORT or 7860)")
    group.add_argument("--auth", metavar="USER:PASSWORD", help="ask visitors for a name and a password")
    group.add_argument("--root-path", default="", metavar="PATH", help="path under which a proxy shows the dashboard")
    group.add_argument("--share", action="store_true", help="also open a public link through gradio's servers")
    group.add_argument(
        "--allow-models",
        metavar="NAMES",
        help="only these models, separated by commas; visitors then cannot read files of this machine either",
    )
    group.add_argument(
        "--max-model-params", metavar="N", help="refuse larger models before their weights are read, such as 8B"
    )
    group.add_argument(
        "--export-dir",
        metavar="DIR",
        help="folder below which the Export step may write on this machine (default: ./exports; without one where"
        " others are served, by --host, --root-path, --share or --allow-models: they download)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    from numprune.ui.starting import uncollected

    few_heaps()
    with uncollected():
        from numprune.ui.launch import launch
        from numprune.ui.serving import Policy, Serving

    serving = Serving(host=args.host, port=args.port, auth=_auth(args.auth), root_path=args.root_path, share=args.share)
    policy = Policy(
        models=_names(args.allow_models, None if args.scores else args.model),
        max_parameters=_count(args.max_model_params),
        exports=_exports(args),
        push=not _served(args),
    )
    try:
        launch(args.model, serving, policy, scores=args.scores, prepare=partial(quiet_libraries, console))
    except OSError as error:
        raise InputError(f"Cannot listen on {args.host}:{args.port} ({error}); choose another --port.") from error


def _auth(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, separator, password = text.partition(":")
    if not (user and separator and password):
        raise InputError("--auth takes a name and a password with a colon between them, such as ada:secret.")
    return user, password


def _exports(args: argparse.Namespace) -> Path | None:
    """The folder for exports: the one that is named, else ./exports for a page that only this machine sees."""
    if args.export_dir:
        return Path(args.export_dir)
    return None if _served(args) else Path("exports")


def _served(args: argparse.Namespace) -> bool:
    """Whether others than this machine's user are meant to see the page."""
    return args.host not in LOCAL or bool(args.root_path) or args.share or args.allow_models is not None


def _names(text: str | None, opened: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    return tuple(dict.fromkeys([*filter(None, [opened]), *names]))


def _count(text: str | None) -> int | None:
    """8B, 500M or a plain number."""
    if text is None:
        return None
    number, unit = (text[:-1], SIZES[text[-1].upper()]) if text[-1:].upper() in SIZES else (text, 1)
    try:
        count = int(float(number) * unit)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(f"--max-model-params is '{text}'; give a number such as 8B or 500M.")
    return count
