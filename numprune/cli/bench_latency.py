"""`numprune bench latency`: the decode times by width that a speed-up is chosen by."""

from __future__ import annotations

import argparse

import numprune
from numprune.cli.console import Console
from numprune.cli.options import load_model
from numprune.errors import InputError
from numprune.files import to_json, write_text


def run(args: argparse.Namespace, console: Console) -> None:
    if len(args.models) != 1:
        raise InputError(f"bench latency times one model and was given {len(args.models)}; name one.")
    model = load_model(args.models[0], args, console)
    with console.progress() as progress:
        found = numprune.latency_of(model, again=True, progress=progress)
    values = {"model": model.name, **found.to_dict()}
    if args.out:
        write_text(args.out, to_json(values))
    lines = [
        f"{model.name}: {found.dense * 1e3:.2f} ms a token at batch {found.batch} behind {found.prompt_tokens} tokens"
        f" (medians of {found.repetitions} runs, {found.device}, {found.dtype}, {found.threads} threads)",
        f"{'module':<10} {'parameters':>12} {'ms':>8}",
    ]
    for kind, pairs in found.widths.items():
        lines += [f"{kind:<10} {size:>12,.0f} {seconds * 1e3:>8.3f}" for size, seconds in pairs]
    console.result(values, "\n".join(lines))
