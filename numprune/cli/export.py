"""`numprune export`."""

from __future__ import annotations

import argparse
from typing import Any

import numprune
from numprune.cli.console import Console, labelled
from numprune.cli.options import Commands, add_command, describe, quiet_libraries
from numprune.files import check_output

EXAMPLE = """\
  numprune export smaller --format transformers --out smaller-hf
  numprune export smaller --push-to-hub ada/smaller --perplexity held-out.txt
  numprune export smaller --formats

  writes a folder that transformers opens without numprune, and prints how; the second puts it on the Hugging Face Hub
  with a model card; the last lists all formats, their options and whether they can carry this model. MODEL is what
  `numprune prune` wrote, or a dense model."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "export", "write a model for another engine", example=EXAMPLE)
    parser.add_argument(
        "model", metavar="MODEL", help="a dense or pruned model: embedded name, hub id, folder or GGUF file"
    )
    parser.add_argument(
        "--format", default="transformers", metavar="NAME", help="see --formats (default: transformers, a folder)"
    )
    parser.add_argument("--out", metavar="PATH", help="folder or file to write; an earlier export is replaced")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the format; repeatable"
    )
    parser.add_argument("--formats", action="store_true", help="list formats and options for this model, write nothing")
    parser.add_argument(
        "--dtype",
        default="checkpoint",
        help="of the weights: checkpoint (the default: its own), float32, float16 or bfloat16",
    )
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument(
        "--push-to-hub",
        metavar="ID",
        help="upload to OWNER/NAME with a model card; --out may be left out then. The token is the one hf auth login"
        " stored, or that of the variable HF_TOKEN, never an argument",
    )
    group.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    group.add_argument(
        "--perplexity",
        metavar="DATA",
        help="measure this model and the one it was pruned from, for the card: a file of text, or wikitext2, ...",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    options = _options(args.option)
    if not args.formats:
        _check_target(args)
    with quiet_libraries(console):
        # Writing needs no accelerator.
        model = numprune.load(args.model, device="cpu", dtype=args.dtype)
    console.notes(model.notes)
    if args.formats:
        _list_formats(model, console)
        return
    result, text = {**describe(model), "format": args.format}, []
    if args.out is not None:
        with console.progress() as progress:
            written = numprune.export(model, args.out, format=args.format, options=options, progress=progress)
        console.notes(written.notes)
        result |= {
            "out": str(written.path),
            "bytes_on_disk": written.bytes,
            "notes": written.notes,
            "snippet": written.snippet,
        }
        rows = {"format": written.format, "size": f"{written.bytes:,} bytes on disk"}
        text.append(f"{model.name} -> {written.path}\n{labelled(rows)}\n\n{written.snippet}")
    if args.push_to_hub is not None:
        result["url"] = _push(args, model, options, console)
        text.append(f"{model.name} -> {result['url']}")
    console.result(result, "\n\n".join(text))


def _push(args: argparse.Namespace, model: numprune.Model, options: dict[str, str], console: Console) -> str:
    measured: dict[str, Any] = {}
    if args.perplexity is not None:
        models = {"perplexity_after": model}
        if model.recipe is not None and model.recipe.model is not None:
            models["perplexity_before"] = numprune.load(model.recipe.model, device="cpu", dtype=args.dtype)
        with console.progress() as progress:
            for name, compared in models.items():
                measured[name] = numprune.perplexity(compared, args.perplexity, progress=progress)
        measured["perplexity_data"] = args.perplexity
    with console.progress() as progress:
        return numprune.push_to_hub(
            model,
            args.push_to_hub,
            format=args.format,
            options=options,
            private=not args.public,
            progress=progress,
            **measured,
        )


def _options(given: list[str]) -> dict[str, str]:
    options = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise numprune.InputError(f"--option is '{text}'; write NAME=VALUE, see --formats for what there is.")
        options[name] = value
    return options


def _check_target(args: argparse.Namespace) -> None:
    """Raise InputError for what is wrong whatever the model is."""
    if args.format not in numprune.FORMATS:
        raise numprune.InputError(f"Format '{args.format}' is not known; use {', '.join(numprune.FORMATS)}.")
    if args.perplexity is not None and args.push_to_hub is None:
        raise numprune.InputError("--perplexity is for the card on the Hub; give --push-to-hub, or use numprune eval.")
    if args.push_to_hub is not None:
        from numprune.export.hub import check_repo_id  # imported late: it brings the whole package along

        check_repo_id(args.push_to_hub)
    if args.out is None and args.push_to_hub is None:
        raise numprune.InputError(
            "There is nowhere to write; give --out with a folder or file, --push-to-hub, or --formats."
        )
    if args.out is not None and not numprune.FORMATS[args.format].suffix:
        check_output(args.out)


def _list_formats(model: numprune.Model, console: Console) -> None:
    refusals = numprune.formats_for(model)
    formats: list[dict[str, Any]] = [
        {
            "format": name,
            "about": format.about,
            "suffix": format.suffix,
            "options": {option: list(values) for option, values in format.options.items()},
            "possible": refusals[name] is None,
            "reason": refusals[name],
        }
        for name, format in numprune.FORMATS.items()
    ]
    rows = {}
    for entry in formats:
        rows[entry["format"]] = entry["about"]
        for option, values in entry["options"].items():
            rows[f"  {option}"] = f"{values[0]} (the default){''.join(f', {value}' for value in values[1:])}"
        if entry["reason"]:
            rows[entry["format"]] += f"; not here: {model.name} {entry['reason']}"
    console.result({**describe(model), "formats": formats}, f"{model.name} as\n{labelled(rows)}")
