"""`numprune generate`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import numprune
from numprune.cli.console import Console
from numprune.cli.options import Commands, add_command, add_model, describe, given, load_model

if TYPE_CHECKING:
    from numprune import Model, Sampling

EXAMPLE = """\
  numprune generate tiny-stories --prompt "One day, a little fox" --temperature 0.7 --seed 3

  writes the story word by word; the same seed writes the same story."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "generate", "continue one or several prompts", example=EXAMPLE)
    add_model(parser)
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="repeatable")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens to write (default 200)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens; 0 for all (default)")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that hold P (default 0.95)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the first prompt; the next has S + 1 (default 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    sampling = numprune.Sampling(**given(**{name: getattr(args, name) for name in names}))
    model = load_model(args.model, args, console)
    console.notes(model.notes)
    if len(args.prompt) == 1 and not console.json and console.out.isatty():
        _stream(model, args.prompt[0], sampling, console)
        return
    with console.progress() as progress:
        texts = numprune.generate(model, args.prompt, **asdict(sampling), progress=progress)
    result = {
        **describe(model),
        "prompts": args.prompt,
        "texts": texts,
        "settings": asdict(sampling),
        "seconds": time.monotonic() - began,
    }
    console.result(result, "\n\n".join(texts))


def _stream(model: Model, prompt: str, sampling: Sampling, console: Console) -> None:
    """Print what every token adds. A character of several tokens is held back until it is whole."""
    shown = ""
    text = prompt
    for (text,) in numprune.stream_text(model, [prompt], sampling):
        if text.startswith(shown) and not text.endswith("\ufffd"):
            console.out.write(text[len(shown) :])
            console.out.flush()
            shown = text
    console.out.write(text.removeprefix(shown) + "\n")
    console.out.flush()
