"""`numprune generate`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli.console import Console
from numprune.cli.options import Commands, add_command, add_model, add_spread, describe, given, load_model
from numprune.files import write_bytes

if TYPE_CHECKING:
    from numprune import LlamaGen, Model, Sampling

EXAMPLE = """\
  numprune generate tiny-stories --prompt "One day, a little fox" --temperature 0.7 --seed 3
  numprune generate tiny-images --classes three,seven --count 4 --guidance 2 --out digits.png

  The first writes the story word by word, the second a PNG with a row of four images for each class; the same
  seed gives the same story and the same images."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "generate", "continue prompts, or draw images of classes", example=EXAMPLE)
    add_model(parser)
    add_spread(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", metavar="TEXT", help="for a language model; repeatable")
    what.add_argument("--classes", metavar="C,C,...", help="for an image model: class ids or names")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest (default 0.8; images 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest; 0 for all (images 2000)")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest that hold P (default 0.95; images 1)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="S", help="of the first prompt or image; the next has S + 1 (default 0)"
    )
    text = parser.add_argument_group("with --prompt")
    text.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens to write (default 200)")
    images = parser.add_argument_group("with --classes")
    images.add_argument("--out", metavar="FILE.png", help="where the grid of images goes; needed")
    images.add_argument("--count", type=int, metavar="N", help="images of each class, side by side (default 1)")
    images.add_argument("--guidance", type=float, metavar="S", help="classifier-free guidance; 1 for none (default 4)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    if args.classes is not None:
        _images(args, console, began)
        return
    _refuse(args, "--prompt", "out", "count", "guidance")
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    sampling = numprune.Sampling(**given(**{name: getattr(args, name) for name in names}))
    model = load_model(args.model, args, console)
    if not model.adapter.reads_text:
        raise numprune.InputError(f"{args.model} draws images; give --classes and --out instead of --prompt.")
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


def _images(args: argparse.Namespace, console: Console, began: float) -> None:
    from numprune.generation.images import picture_grid, png

    _refuse(args, "--classes", "max_new_tokens")
    if args.out is None or not args.out.lower().endswith(".png"):
        raise numprune.InputError("--classes needs --out with the name of a PNG file, such as images.png.")
    count = 1 if args.count is None else args.count
    if count < 1:
        raise numprune.InputError(f"--count is {count}; give at least 1.")
    model = load_model(args.model, args, console)
    if model.adapter.reads_text:
        raise numprune.InputError(f"{args.model} writes text; give --prompt instead of --classes.")
    if model.vq is None:
        raise numprune.InputError(
            f"{args.model} came without an image tokenizer; put its VQ file (vq_ds16_c2i.pt) beside it."
        )
    console.notes(model.notes)
    classes = [number for number in _class_ids(args.classes, model) for _ in range(count)]
    settings: dict[str, Any] = given(
        cfg_scale=args.guidance, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    with console.progress() as progress:
        codes = model.generate(classes, **settings, progress=progress)
    grid = picture_grid(model.decode(codes), columns=None if count == 1 else count)
    write_bytes(args.out, png(grid))
    seconds = time.monotonic() - began
    result = {**describe(model), "classes": classes, "out": args.out, "settings": settings, "seconds": seconds}
    console.result(result, f"{args.out}: {len(classes)} images in {seconds:.1f} s")


def _class_ids(text: str, model: LlamaGen) -> list[int]:
    """Ids of classes given by id or name."""
    ids = {name: index for index, name in enumerate(model.class_names)}
    chosen = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        if not word.isdecimal() and word not in ids:
            known = ", ".join(model.class_names[:5])
            raise numprune.InputError(
                f"'{word}' is no class of {model.name}; give ids from 0 to {model.classes - 1} or names"
                f" such as {known}."
            )
        # A name that is a number is the class of that name: the digit, not the position.
        chosen.append(ids[word] if word in ids else int(word))
    return chosen


def _refuse(args: argparse.Namespace, with_flag: str, *names: str) -> None:
    """Raise InputError when a flag was given that has no effect with `with_flag`."""
    for name in names:
        if getattr(args, name) is not None:
            raise numprune.InputError(f"--{name.replace('_', '-')} means nothing with {with_flag}; leave it out.")


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
