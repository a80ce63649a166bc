"""`numprune eval`."""

from __future__ import annotations

import argparse
import io
import logging
import time
from contextlib import nullcontext, redirect_stderr
from typing import Any

import numprune
from numprune.cli.console import Console, labelled
from numprune.cli.options import TEXTS, Commands, add_command, add_model, add_spread, describe, given, load_model

EXAMPLE = """\
  numprune eval tiny-stories smaller --sequence-length 256 --speed

  numprune eval tiny-images smaller-images --images 1000 --metrics fid,precision,recall

  numprune eval huggyllama/llama-7b smaller-llama --tasks paper

  The first prints the perplexity of both models on the embedded held-out stories, their sizes and their tokens per
  second. The second draws images and measures how far they are from real ones: with the classifier that came with
  the model, or with Inception where --reference names an npz file (ADM's VIRTUAL_imagenet256_labeled.npz). The third
  measures accuracy on the seven tasks of the paper's table 2, with lm-eval (pip install 'numprune[eval]', in a clone
  '.[eval]'); mmlu, gsm8k and all its other tasks go by their names there."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "eval",
        "measure perplexity, accuracy on tasks or image quality, size and speed",
        example=EXAMPLE,
        shared=True,
    )
    add_model(parser, nargs="+", help="embedded name (tiny-stories), hub id, folder or GGUF file; several are compared")
    add_spread(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help=f"{TEXTS} (default: the embedded held-out stories)",
    )
    parser.add_argument("--text-column", metavar="NAME", help="the column of rows that holds the text")
    parser.add_argument("--sequence-length", type=int, default=2048, metavar="L", help="tokens per window (2048)")
    parser.add_argument(
        "--stride", type=int, metavar="S", help="tokens from one window to the next (default: the sequence length)"
    )
    parser.add_argument(
        "--no-bos",
        dest="bos",
        action="store_false",
        help="begin only documents with BOS, not every window, where the tokenizer adds one (as GPTQ's code does)",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="predict the first N tokens only (default: all)")
    parser.add_argument("--speed", action="store_true", help="also measure tokens per second, 64 tokens in, 64 out")
    tasks = parser.add_argument_group("accuracy on tasks, with lm-eval")
    tasks.add_argument(
        "--tasks",
        metavar="T,T,...",
        help="paper (boolq, piqa, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa), mmlu, gsm8k, ...",
    )
    tasks.add_argument("--limit", type=int, metavar="N", help="only the first N examples of every task")
    tasks.add_argument("--shots", type=int, metavar="N", help="solved examples in the prompt (default: the task's own)")
    tasks.add_argument("--include", metavar="FOLDER", help="a folder with tasks of your own in lm-eval's YAML format")
    images = parser.add_argument_group("image models")
    images.add_argument("--images", type=int, metavar="N", help="draw N images, all classes alike, and measure them")
    images.add_argument(
        "--metrics",
        metavar="M,M,...",
        help="of fid, sfid, is, precision, recall (default: all, or is alone with Inception and no --reference)",
    )
    images.add_argument("--reference", metavar="FILE.npz", help="real images or their statistics in ADM's format")
    images.add_argument("--guidance", type=float, metavar="S", help="classifier-free guidance; 1 for none (default 4)")
    images.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest code (default 1)")
    images.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest; 0 for all (default 2000)")
    images.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that hold P (default 1)")
    images.add_argument("--seed", type=int, metavar="S", help="of the first image; the next has S + 1 (default 0)")
    images.add_argument("--batch-size", type=int, metavar="B", help="images drawn at once (64), sequences of tasks (8)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    if args.speed or args.tasks is not None or args.images is not None:
        console.alone("Speed, tasks and images are measured")
    for name in _TASK_FLAGS:
        if args.tasks is None and getattr(args, name) is not None:
            raise numprune.InputError(f"--{name} needs --tasks, such as --tasks paper.")
    if args.images is None:
        for name in _IMAGE_FLAGS:
            if getattr(args, name) is not None and not (args.tasks and name == "batch_size"):
                raise numprune.InputError(f"--{name.replace('_', '-')} needs --images N, for image models.")
        if args.tasks is not None:
            _answer(args, console)
            return
        results = [_evaluate(name, args, console) for name in args.model]
        console.result(results[0] if len(results) == 1 else results, "\n\n".join(map(_text, results)))
        return
    if args.data is not None or args.max_tokens is not None or args.speed or args.tasks is not None:
        raise numprune.InputError(
            "--images measures image models; leave out --data, --max-tokens, --speed and --tasks."
        )
    results = [_images(name, args, console) for name in args.model]
    console.result(results[0] if len(results) == 1 else results, "\n\n".join(map(_images_text, results)))


_TASK_FLAGS = ("limit", "shots", "include")
_IMAGE_FLAGS = ("metrics", "reference", "guidance", "temperature", "top_k", "top_p", "seed", "batch_size")


def _answer(args: argparse.Namespace, console: Console) -> None:
    """`--tasks`: the accuracy of every model, tasks in rows and models in columns."""
    if args.data is not None or args.max_tokens is not None or args.speed or args.stride is not None:
        raise numprune.InputError("--tasks measures accuracy; leave out --data, --max-tokens, --stride and --speed.")
    names = [part.strip() for part in args.tasks.split(",")]
    names = [task for name in names for task in (numprune.PAPER_TASKS if name == "paper" else (name,))]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    measured, results = [], []
    for name in args.model:
        model = load_model(name, args, console)
        # The harness draws bars on stderr wherever it goes.
        with (
            console.progress() as progress,
            nullcontext() if console.shows_progress else redirect_stderr(io.StringIO()),
        ):
            accuracy = numprune.zero_shot(
                model,
                names,
                limit=args.limit,
                shots=args.shots,
                include=args.include,
                progress=progress,
                **given(batch_size=args.batch_size),
            )
        console.notes(model.notes)
        measured.append(accuracy)
        results.append({**describe(model), **accuracy.to_dict()})
    console.result(results[0] if len(results) == 1 else results, _answers(measured))


def _answers(models: list[numprune.ZeroShot]) -> str:
    """A line for every task, with one standard error, and their mean."""
    import pandas as pd

    first = models[0]
    table = pd.DataFrame(
        {
            "task": [score.task for score in first.scores],
            "metric": [score.metric for score in first.scores],
            "shots": [score.shots for score in first.scores],
            "n": [score.n for score in first.scores],
            **{f"{accuracy.model} %": [_percent(score) for score in accuracy.scores] for accuracy in models},
        }
    )
    table.loc[len(table)] = ["mean", "", "", "", *(f"{100 * accuracy.mean:.2f}" for accuracy in models)]
    return f"{table.to_string(index=False)}\n{first.harness}, {first.dtype} on {first.device}"


def _percent(score: numprune.TaskScore) -> str:
    spread = "" if score.stderr is None else f" ± {100 * score.stderr:.2f}"
    return f"{100 * score.value:.2f}{spread}"


def _images(name: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    from numprune.evaluation.images.features import METRICS
    from numprune.evaluation.images.inception import Inception
    from numprune.evaluation.images.judge import panel_of
    from numprune.evaluation.images.quality import image_quality
    from numprune.evaluation.images.references import Reference, reference_from_npz

    began = time.monotonic()
    wanted = None if args.metrics is None else [part.strip() for part in args.metrics.split(",")]
    model = load_model(name, args, console)
    if model.adapter.reads_text:
        raise numprune.InputError(f"{name} writes text; leave out --images.")
    panel = None if args.reference else panel_of(model)
    reference: Reference | None
    with console.progress() as progress:
        if panel is not None:
            extractor, reference, wanted = panel, panel.reference, wanted or METRICS
        else:
            extractor, reference = Inception.load(args.device), None
            wanted = wanted or (METRICS if args.reference else ("is",))
            if args.reference:
                reference = reference_from_npz(args.reference, extractor, wanted, progress=progress)
        settings = given(
            cfg_scale=args.guidance,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            batch=args.batch_size,
        )
        measured = image_quality(model, args.images, extractor, reference, wanted, progress=progress, **settings)
    console.notes(model.notes)
    return {**describe(model), **measured.to_dict(), "seconds": time.monotonic() - began}


def _images_text(result: dict[str, Any]) -> str:
    rows = {"measured with": f"{result['extractor']} on {result['n']:,} images"}
    if result["recognised"] is not None:
        rows["recognised"] = f"{result['recognised']:.1%} ± {result['recognised_error']:.1%} as their class"
    rows |= {metric: f"{value:.4f}" for metric, value in result["values"].items()}
    median, low, high = result["images_per_second"]
    rows["speed"] = f"{median:.2f} images/s ({low:.2f} to {high:.2f}), {result['batch']} at once"
    rows["parameters"] = (
        f"{result['parameters']:,} ({result['bytes']:,} bytes, {result['dtype']} on {result['device']})"
    )
    return f"{result['model']}\n{labelled(rows)}"


def _evaluate(name: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    began = time.monotonic()
    model = load_model(name, args, console)
    if not model.adapter.reads_text:
        raise numprune.InputError(f"{name} draws images; give --images N, such as 1000, to measure them.")
    data = args.data or numprune.held_out_text()
    with console.progress() as progress:
        measured = numprune.perplexity(
            model,
            data,
            sequence_length=args.sequence_length,
            stride=args.stride,
            max_tokens=args.max_tokens,
            bos=args.bos,
            text_column=args.text_column,
            progress=progress,
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
        "windows": f"{result['windows']:,} of {result['sequence_length']} tokens, stride {result['stride']}"
        + (f", each begins with {result['start']}" if result["start"] else ""),
        "parameters": f"{result['parameters']:,} ({result['bytes']:,} bytes, {result['dtype']} on {result['device']})",
    }
    for phase in ("prefill", "decode") if "speed" in result else ():
        median, low, high = result["speed"][phase]
        rows[phase] = f"{median:,.0f} tokens/s ({low:,.0f} to {high:,.0f})"
    return f"{result['model']}\n{labelled(rows)}"
