"""`numprune bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from numprune.cli import bench_engines, bench_latency
from numprune.cli.console import Console
from numprune.cli.options import Commands, add_command, add_device, given, quiet_libraries
from numprune.errors import InputError
from numprune.files import to_json, write_text

if TYPE_CHECKING:
    from numprune.evaluation.benchmark import Benchmark

BENCHMARKS = ("score", "eliminate", "calibrate", "prune", "speed", "images", "dashboard", "scale", "engines", "latency")

EXAMPLE = """\
  numprune bench score --sizes 4096 --json

  numprune bench engines tiny-stories smaller --engines transformers,llama.cpp --out engines.json

  numprune bench latency tiny-stories

  The first prints the closed form of the score against the paper's 50-step loop and against a bare Cholesky
  factorisation. The second times both models in turn in each engine; the page opens its file in the tab Speed.
  The last times decoding by the width of modules, and keeps the table for `prune --speedup`. Under torchrun, calibrate
  is timed in all its processes together."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bench",
        "measure what the method costs, on random data, or (engines) how fast two models are where they are served",
        example=EXAMPLE,
        shared=True,
    )
    parser.add_argument(
        "which",
        nargs="?",
        choices=BENCHMARKS,
        help="one of the benchmarks (default: all but dashboard, scale, engines and latency)",
    )
    bench_engines.add_options(parser)
    add_device(parser)
    parser.add_argument(
        "--repetitions", "--repeats", type=int, default=3, metavar="N", help="of every measurement (default 3)"
    )
    parser.add_argument("--out", metavar="FILE", help="also write the JSON to a file")
    group = parser.add_argument_group("score, eliminate")
    group.add_argument("--sizes", default="4096,11008", metavar="D,D", help="input channels (default 4096,11008)")
    group.add_argument("--out-features", type=int, metavar="N", help="of the layer (default: as many, 4096 at most)")
    group.add_argument(
        "--loop-steps",
        type=int,
        metavar="N",
        help="steps of the loop to time; 50 is extrapolated from fewer (default: 50, but 2 above 4096 on a CPU)",
    )
    group = parser.add_argument_group("calibrate, prune, speed, images, scale")
    group.add_argument("--hidden", type=int, metavar="N", help="hidden size of the random model (default 1024)")
    group.add_argument("--channels", type=int, metavar="N", help="MLP channels (default 2816)")
    group.add_argument("--layers", type=int, metavar="N", help="decoder layers (default 2)")
    group.add_argument("--heads", type=int, metavar="N", help="attention heads (default 16)")
    group.add_argument("--samples", type=int, default=8, metavar="N", help="calibration sequences (default 8)")
    group.add_argument("--sequence-length", type=int, default=512, metavar="L", help="tokens per sequence (512)")
    group.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to decode (default 64)")
    group.add_argument("--ratio", type=float, default=0.5, metavar="R", help="pruning ratio (default 0.5)")
    group.add_argument("--grid", type=int, default=8, metavar="G", help="codes along one side of an image (default 8)")
    group.add_argument("--batch", type=int, default=16, metavar="B", help="images drawn at once (default 16)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    counts = ("repetitions", "out_features", "samples", "sequence_length", "new_tokens", "loop_steps")
    counts += ("prompt_tokens", "hidden", "channels", "layers", "heads", "grid", "batch")
    for name in counts:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; give at least 1.")
    if args.which != "calibrate":
        console.alone("Every benchmark but calibrate runs")
    if args.which == "engines":
        bench_engines.run(args, console)
        return
    if args.which == "latency":
        bench_latency.run(args, console)
        return
    if args.models:
        raise InputError(f"bench {args.which} takes no model, and was given {args.models[0]}; leave it out.")
    sizes = _sizes(args.sizes)

    from numprune.evaluation.benchmark import machine

    quiet_libraries(console)
    results: list[Benchmark] = []
    for measure in _chosen(args, sizes):
        with console.progress() as progress:
            result = measure(progress=progress)
        results.append(result)
        console.notes(result.notes)
        if not console.json and console.writes:
            print(_table(result), end="\n\n", flush=True)
    whole = {"machine": machine(), "benchmarks": [result.to_dict() for result in results]}
    if not console.writes:
        return
    if args.out:
        write_text(args.out, to_json(whole))
    if console.json:
        console.out.write(to_json(whole))


def _sizes(text: str) -> list[int]:
    sizes = [int(size) for size in text.split(",") if size.strip().isdigit()]
    if len(sizes) != text.count(",") + 1 or min(sizes) < 1:
        raise InputError(f"sizes is '{text}'; give positive numbers such as 4096,11008.")
    return sizes


def _chosen(args: argparse.Namespace, sizes: list[int]) -> Iterator[Callable[..., Benchmark]]:
    """The benchmarks asked for; each takes `progress`."""
    from numprune.evaluation import costs
    from numprune.evaluation.random_models import Shape

    shape = Shape(**given(hidden=args.hidden, channels=args.channels, layers=args.layers, heads=args.heads))
    on = {"device": args.device, "repetitions": args.repetitions}
    if args.which in (None, "score"):
        for size in sizes:
            steps = args.loop_steps or costs.usual_loop_steps(size, args.device)
            yield partial(costs.bench_score, size, loop_steps=steps, **given(out_features=args.out_features), **on)
    if args.which in (None, "eliminate"):
        for size in sizes:
            yield partial(costs.bench_eliminate, size, out_features=args.out_features, **on)
    on["dtype"] = args.dtype
    if args.which in (None, "calibrate"):
        yield partial(costs.bench_calibrate, shape, samples=args.samples, sequence_length=args.sequence_length, **on)
    if args.which in (None, "prune"):
        yield partial(costs.bench_prune, shape, ratio=args.ratio, **on)
    if args.which in (None, "speed"):
        yield partial(costs.bench_speed, shape, ratio=args.ratio, new_tokens=args.new_tokens, **on)
    if args.which in (None, "images"):
        yield partial(costs.bench_images, shape, ratio=args.ratio, grid=args.grid, batch=args.batch, **on)
    if args.which == "dashboard":
        from numprune.ui.bench import SEVEN_BILLION, SEVENTY_BILLION, bench_dashboard

        for size in (SEVEN_BILLION, SEVENTY_BILLION):
            yield partial(bench_dashboard, size, repetitions=max(args.repetitions, 20))
    if args.which == "scale":
        from numprune.evaluation import scale

        large = Shape(**{**vars(scale.MEASURED), **given(hidden=args.hidden, channels=args.channels)})
        large = replace(large, **given(layers=args.layers, heads=args.heads))
        size = {"samples": args.samples, "sequence_length": args.sequence_length, "ratio": args.ratio}
        yield partial(scale.bench_scale, large, device="cpu" if args.device == "auto" else args.device, **size)


def _table(result: Benchmark) -> str:
    import pandas as pd

    figures = pd.DataFrame([vars(figure) for figure in result.figures])
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    head = f"{result.name} on {result.device}, {result.dtype} ({settings})"
    if figures.empty:
        return head
    return head + "\n" + figures.fillna("").to_string(index=False, float_format=_number)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
