"""`numprune bench engines`: a dense and a pruned model in the engines that serve them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from numprune.cli.console import Console
from numprune.cli.options import given, numbers, quiet_libraries
from numprune.errors import InputError
from numprune.files import to_json, write_text

if TYPE_CHECKING:
    from numprune.evaluation.engines.records import AtBatch, EngineComparison, EngineResult, Spread

BATCHES = "1,8,32"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="for engines: the dense model and the pruned one, for latency: one; before all options (embedded name, hub"
        " id, folder, export or GGUF file)",
    )
    group = parser.add_argument_group("engines")
    group.add_argument(
        "--engines",
        metavar="E,E",
        help="transformers, llama.cpp, onnxruntime, vllm, vllm-transformers (both models by its Transformers backend);"
        " default: all that are installed",
    )
    group.add_argument(
        "--python", metavar="FILE", help="the Python of an environment with vLLM, such as env/bin/python"
    )
    group.add_argument("--batches", default=BATCHES, metavar="B,B", help=f"sequences at once (default {BATCHES})")
    group.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="tokens to read (default 64)")
    group.add_argument(
        "--gguf-dtype", default="f16", metavar="TYPE", help="of the GGUF files: f16 (default), q8_0, ..."
    )
    group.add_argument("--eager", action="store_true", help="run vLLM without torch.compile")


def run(args: argparse.Namespace, console: Console) -> None:
    if len(args.models) != 2:
        raise InputError(
            f"bench engines was given {len(args.models)} models; name the dense one and the pruned one, before all"
            " options."
        )
    batches = numbers("batches", args.batches, int, BATCHES)

    from numprune.evaluation.engines.comparison import compare_engines

    quiet_libraries(console)
    with console.progress() as progress:
        found = compare_engines(
            *args.models,
            **given(engines=args.engines and [name.strip() for name in args.engines.split(",")]),
            python=args.python,
            batches=batches,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            repetitions=args.repetitions,
            device=args.device,
            dtype=args.dtype,
            gguf_dtype=args.gguf_dtype,
            eager=args.eager,
            progress=progress,
        )
    if args.out:
        write_text(args.out, to_json(found.to_dict()))
    console.result(found.to_dict(), told(found))


def told(found: EngineComparison) -> str:
    """The comparison for people: a table an engine, and how it was measured."""
    rows = [f"{found.dense.name} -> {found.pruned.name}"]
    rows.append(f"  parameters  {found.dense.parameters:,} dense, {found.pruned.parameters:,} pruned")
    rows.append(
        f"  measured    {found.prompt_tokens} prompt and {found.new_tokens} new tokens, greedy; median (lowest to"
        f" highest) of {found.repetitions} runs of each model, in turn after a warm-up; {found.threads}"
        f" {'thread' if found.threads == 1 else 'threads'} of {found.machine}"
    )
    return "\n\n".join(["\n".join(rows), *map(_engine, found.engines)])


def _engine(result: EngineResult) -> str:
    import pandas as pd

    if result.refused is not None:
        return f"{result.engine}: not measured; {result.refused}."
    dense, pruned = result.dense, result.pruned
    head = (
        f"{result.engine} {result.version} on {result.device}: {dense.runs_as} in {dense.dtype},"
        f" {dense.weights / 1e6:,.1f} MB -> {pruned.runs_as} in {pruned.dtype}, {pruned.weights / 1e6:,.1f} MB"
    )
    parts = [head]
    measured = [at for at in result.batches if at.refused is None]
    if measured:
        table = pd.DataFrame([row for at in measured for row in _rows(at)])
        parts.append(table.to_string(index=False))
    parts += [f"batch {at.batch}: not measured; {at.refused}." for at in result.batches if at.refused is not None]
    return "\n".join(parts)


def _rows(at: AtBatch) -> list[dict[str, str]]:
    """A row of each quantity."""
    dense, pruned = at.dense, at.pruned
    rows = [
        ("decode, tokens/s", _spread(dense.decode), _spread(pruned.decode), at.decode_gain, at.decode_promised),
        ("prefill, tokens/s", _spread(dense.prefill), _spread(pruned.prefill), at.prefill_gain, at.prefill_promised),
        ("first token, ms", _spread(dense.first_token, 1e3), _spread(pruned.first_token, 1e3), None, None),
        ("peak memory, MB", *(_megabytes(each.peak_bytes) for each in (dense, pruned)), None, None),
        ("KV cache, MB", *(_megabytes(each.kv_bytes) for each in (dense, pruned)), None, None),
    ]
    return [
        {
            "batch": str(at.batch) if not number else "",
            "": name,
            "dense": one,
            "pruned": other,
            "over dense": "" if gain is None else "{:.2f}x ({:.2f}x to {:.2f}x)".format(*gain),
            "promised": "" if promised is None else f"{promised:.2f}x",
            "reached": "" if gain is None else f"{gain[0] / promised:.0%}",
        }
        for number, (name, one, other, gain, promised) in enumerate(rows)
    ]


def _spread(values: Spread, scale: float = 1.0) -> str:
    middle, low, high = (_figure(value * scale) for value in values)
    return f"{middle} ({low} to {high})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def _megabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e6:,.2f}"
