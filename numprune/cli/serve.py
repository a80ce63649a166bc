"""`numprune serve`."""

from __future__ import annotations

import argparse

from numprune.cli.console import Console
from numprune.cli.options import Commands, add_command, quiet_libraries
from numprune.errors import InputError

EXAMPLE = """\
  numprune serve --model tiny-stories --port 7860

  opens the dashboard on http://127.0.0.1:7860."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "serve", "start the dashboard", example=EXAMPLE, json=False)
    parser.add_argument("--model", default="tiny-stories", metavar="MODEL", help="model to open (default tiny-stories)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    from numprune.ui.launch import launch

    quiet_libraries(console)
    try:
        launch(args.model, args.host, args.port)
    except OSError as error:
        raise InputError(f"Cannot listen on {args.host}:{args.port} ({error}); choose another --port.") from error
