"""`numprune eval`."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numprune
from numprune.cli.console import Console, labelled
from numprune.cli.options import Commands, add_command, add_model, describe, load_model

EXAMPLE = """\
  numprune eval tiny-stories smaller --sequence-length 256 --speed

  prints the perplexity of both models on the embedded held-out stories, their sizes and their tokens per second."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "eval", "measure perplexity, size and speed of models", example=EXAMPLE)
    add_model(parser, nargs="+", help="embedded name (tiny-stories), hub id or folder; several are compared")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="text or jsonl file, wikitext2, c4, ptb or tinystories (default: the embedded held-out stories)",
    )
    parser.add_argument("--sequence-length", type=int, default=2048, metavar="L", help="tokens per window (2048)")
    parser.add_argument(
        "--stride", type=int, metavar="S", help="tokens from one window to the next (default: the sequence length)"
    )
    parser.add_argument("--speed", action="store_true", help="also measure tokens per second, 64 tokens in, 64 out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    results = [_evaluate(name, args, console) for name in args.model]
    console.result(results[0] if len(results) == 1 else results, "\n\n".join(map(_text, results)))


def _evaluate(name: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    began = time.monotonic()
    model = load_model(name, args, console)
    data = args.data or numprune.held_out_text()
    with console.progress() as progress:
        measured = numprune.perplexity(
            model, data, sequence_length=args.sequence_length, stride=args.stride, progress=progress
        )
        speed = numprune.measure_speed(model, progress=progress) if args.speed else None
    console.notes(model.notes)
    return {
        **describe(model),
        **measured.to_dict(),
        "data": str(data),
        **({"speed": speed.to_dict()} if speed else {}),
        "seconds": time.monotonic() - began,
    }


def _text(result: dict[str, Any]) -> str:
    perplexity = "infinite" if result["perplexity"] is None else f"{result['perplexity']:.3f}"
    rows = {
        "perplexity": f"{perplexity} over {result['tokens']:,} tokens of {result['data']}",
        "windows": f"{result['windows']:,} of {result['sequence_length']} tokens, stride {result['stride']}",
        "parameters": f"{result['parameters']:,} ({result['bytes']:,} bytes, {result['dtype']} on {result['device']})",
    }
    for phase in ("prefill", "decode") if "speed" in result else ():
        median, low, high = result["speed"][phase]
        rows[phase] = f"{median:,.0f} tokens/s ({low:,.0f} to {high:,.0f})"
    return f"{result['model']}\n{labelled(rows)}"
