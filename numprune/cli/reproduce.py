"""`numprune reproduce`."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli import speed_figure
from numprune.cli.console import Console
from numprune.cli.options import TEXTS, Commands, add_command, add_device, load_model, numbers
from numprune.cli.page import html_page, result_of
from numprune.errors import InputError, LoadError
from numprune.evaluation.paper import IMAGE_METRICS, PROTOCOLS, SOURCE, PaperModel, Protocol
from numprune.files import write_text

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from numprune import Bench, Cell, Model

EXAMPLE = """\
  numprune reproduce table1 --device cuda
  numprune reproduce table1 --model huggyllama/llama-13b --methods paper,best --ratios 0.2
  numprune reproduce table3 --reference VIRTUAL_imagenet256_labeled.npz
  numprune reproduce figure5
  numprune reproduce table1 --model tiny-stories --data held_out.txt --calibration self --samples 32

  table1: perplexity of LLaMA-7B on WikiText2, PTB and C4. table3: images of LlamaGen-XXL and -3B at 384 x 384.
  figure5: memory and speed with 64 tokens in. Each by the paper's protocol, with its figures beside ours and the
  difference, as a table, a CSV and a page. What --out holds is not measured again, so that the same command goes on
  where it was stopped; settings that are not the paper's are named in the output."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "reproduce", "measure a table or figure of the paper", example=EXAMPLE)
    parser.add_argument("name", metavar="NAME", choices=list(PROTOCOLS), help=", ".join(PROTOCOLS))
    parser.add_argument("--model", metavar="MODEL", help="another model, or another place of the paper's own")
    add_device(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where cells, table and page go (default: NAME)")
    parser.add_argument("--methods", metavar="M,M", help="methods to compare (default: the paper's)")
    parser.add_argument("--ratios", metavar="R,R", help="pruning ratios (default: the paper's)")
    group = parser.add_argument_group("settings other than the paper's")
    group.add_argument("--calibration", metavar="DATA", help=f"{TEXTS}; or self")
    group.add_argument("--samples", type=int, metavar="N", help="calibration sequences or images")
    group.add_argument("--sequence-length", type=int, metavar="L", help="tokens of a calibration or held-out window")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of the calibration (default 0)")
    group.add_argument("--data", metavar="DATA,DATA", help="held-out texts (table1; default wikitext2,ptb,c4)")
    group.add_argument("--images", type=int, metavar="N", help="images to draw (table3; default 50000)")
    group.add_argument("--guidance", type=float, metavar="S", help="classifier-free guidance (table3)")
    group.add_argument("--reference", metavar="FILE.npz", help="ADM's statistics of real images (table3)")
    group.add_argument("--repetitions", type=int, metavar="N", help="of every timing (figure5; default 5)")
    group.add_argument("--new-tokens", type=int, metavar="N", help="tokens to decode (figure5; default 64)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    from numprune.evaluation.methods import methods_for

    protocol = PROTOCOLS[args.name]
    _check_flags(args, protocol)
    methods = args.methods.split(",") if args.methods else []
    for name in methods:
        numprune.preset(name)
    out = Path(args.out or args.name)
    recipe = _recipe(args, protocol)
    ratios = protocol.ratios
    if args.ratios:
        ratios = [recipe.replace(ratio=ratio).ratio for ratio in numbers("ratios", args.ratios, float, "0.1,0.2")]
    names = [args.model] if args.model else [known.checkpoint for known in protocol.models[: protocol.by_default]]
    results, texts = [], []
    for name in names:
        model = _open(name, args, protocol, console)
        stem = out / re.sub(r"[^\w.-]+", "-", Path(name).name)
        if args.name == "figure5":
            result, text = speed_figure.measure(model, args, protocol, recipe, ratios, stem, console)
        else:
            able = methods_for(model)
            chosen = methods or [name for name in protocol.methods if name in able]
            result, text = _table(model, args, protocol, recipe, chosen, ratios, stem, console)
        console.notes(model.notes)
        results.append(result)
        texts.append(text)
    console.result(results[0] if len(results) == 1 else results, "\n\n".join(texts))


def _check_flags(args: argparse.Namespace, protocol: Protocol) -> None:
    fitting = {"data": "table1", "images": "table3", "guidance": "table3", "reference": "table3"}
    fitting |= {"repetitions": "figure5", "new_tokens": "figure5"}
    for flag, name in fitting.items():
        if getattr(args, flag) is not None and args.name != name:
            raise InputError(f"--{flag.replace('_', '-')} belongs to {name}; leave it out for {args.name}.")
    for flag in ("samples", "sequence_length", "images", "repetitions", "new_tokens"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag.replace('_', '-')} is {value}; give at least 1.")
    if args.name == "figure5" and args.methods:
        raise InputError("figure5 is of the paper's own method; leave out --methods.")


def _recipe(args: argparse.Namespace, protocol: Protocol) -> numprune.Recipe:
    calibration = numprune.CalibrationRecipe(
        data=args.calibration or protocol.calibration,
        samples=protocol.samples if args.samples is None else args.samples,
        sequence_length=protocol.sequence_length if args.sequence_length is None else args.sequence_length,
        seed=args.seed,
        bos=False,
    )
    return numprune.Recipe(calibration=calibration)


def _open(name: str, args: argparse.Namespace, protocol: Protocol, console: Console) -> Model:
    try:
        model = load_model(name, args, console)
    except LoadError as error:
        if args.model:
            raise
        wanted = next(known for known in protocol.models if known.checkpoint == name)
        raise LoadError(
            f"{protocol.title.capitalize()} needs the weights of {wanted.name}: get {name} from the hub, or give their"
            f" place as --model ({str(error).rstrip('.')})."
        ) from error
    draws = not model.adapter.reads_text
    if draws != (protocol.images is not None):
        does, wanted = ("draws images", "language") if draws else ("writes text", "image")
        raise InputError(f"{name} {does}; {protocol.title} is of {wanted} models.")
    return model


def _table(
    model: Model,
    args: argparse.Namespace,
    protocol: Protocol,
    recipe: numprune.Recipe,
    methods: list[str],
    ratios: list[float],
    stem: Path,
    console: Console,
) -> tuple[dict[str, Any], str]:
    from numprune.evaluation.cells import read_cells, write_cells
    from numprune.evaluation.methods import compare_methods
    from numprune.evaluation.reproduction import beside, other_ratios, paper_model

    began = time.monotonic()
    paper = paper_model(model, protocol.models)
    with console.progress() as progress:
        benches, differing = _benches(model, args, protocol, recipe, paper, progress)
        cells_file = stem.with_name(f"{stem.name}-cells.csv")
        cells = read_cells(cells_file)
        for cell in compare_methods(
            model, methods, ratios, benches, recipe=recipe, seeds=[args.seed], done=cells, progress=progress
        ):
            cells.append(cell)
            write_cells(cells_file, cells)
    wanted = {("dense", 0.0), *((method, ratio) for method in methods for ratio in ratios)}
    shown = [cell for cell in cells if (cell.method, cell.ratio) in wanted]
    table = beside(shown, paper)
    notes = _notes(model, protocol, paper, differing + other_ratios(protocol, ratios))
    csv, page = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.html")
    write_text(csv, table.to_csv(index=False))
    title = protocol.heading(model.name)
    write_text(page, html_page(title, notes, _figures(shown, paper)))
    files = {"cells": cells_file, "csv": csv, "page": page}
    result = result_of(model, title, paper, notes, table, files, began)
    return result, "\n".join([title, _wide(table).to_string(index=False), *notes])


def _benches(
    model: Model,
    args: argparse.Namespace,
    protocol: Protocol,
    recipe: numprune.Recipe,
    paper: PaperModel | None,
    progress: Any,
) -> tuple[list[Bench], list[str]]:
    """What to measure on, and how that differs from the paper's protocol."""
    from numprune.evaluation.reproduction import Resized, deviations

    source = recipe.calibration
    if model.adapter.reads_text:
        length = min(source.sequence_length, model.maximum_length or source.sequence_length)
        texts = args.data.split(",") if args.data else list(protocol.texts)
        names = [Path(text).name for text in texts]
        if len(set(names)) < len(names):
            raise InputError(f"--data names two texts alike ({', '.join(names)}); give each another name.")
        differing = deviations(protocol, calibration=source.data, samples=source.samples, sequence_length=length)
        differing += [f"{name} is not among its texts" for name in names if name not in protocol.texts]
        return [numprune.Bench(data=text, sequence_length=length, bos=False) for text in texts], differing
    from numprune.evaluation.images.inception import Inception
    from numprune.evaluation.images.references import reference_from_npz

    expected = (paper or protocol.models[0]).guidance
    guidance = expected if args.guidance is None else args.guidance
    images = protocol.images if args.images is None else args.images
    differing = deviations(protocol, calibration=source.data, samples=source.samples, images=images)
    if guidance != expected:
        differing.append(f"guidance {guidance:g} instead of {expected:g}")
    bench = numprune.Bench(images=images, drawing={"cfg_scale": guidance, "top_k": 0}, metrics=IMAGE_METRICS)
    if args.reference:
        inception = Inception.load(args.device)
        reference = reference_from_npz(args.reference, inception, IMAGE_METRICS, progress=progress)
        return [replace(bench, extractor=Resized(inception), reference=reference)], differing
    if model.judge is None:
        raise InputError(
            f"{protocol.title} compares with real images; give --reference with ADM's VIRTUAL_imagenet256_labeled.npz."
        )
    return [bench], [*differing, "the model's own judge instead of Inception, so that no figure can be compared"]


def _notes(model: Model, protocol: Protocol, paper: PaperModel | None, differing: list[str]) -> list[str]:
    from numprune.evaluation.reproduction import protocol_notes

    if paper is None:
        names = ", ".join(known.name for known in protocol.models)
        note = f"{model.name} is none of the models of {protocol.title} ({names}): no figure stands beside ours."
    else:
        note = f"Figures of the paper: {paper.name}, {protocol.title} of {SOURCE}."
    return [note, *protocol_notes(protocol, differing)]


def _wide(table: DataFrame) -> DataFrame:
    """A line for every method and ratio; for every measure the measured value, the paper's and the difference."""
    import pandas as pd

    rows = []
    for (method, ratio), group in table.groupby(["method", "ratio"], sort=False):
        row = {"method": method, "ratio": f"{ratio:g}"}
        for figure in group.itertuples():
            row[figure.measure] = figure.ours
            row[f"{figure.measure}, paper"] = figure.paper
            row[f"{figure.measure}, difference"] = figure.difference
        rows.append(row)
    wide = pd.DataFrame(rows).dropna(axis=1, how="all")
    return wide.map(lambda value: ("-" if pd.isna(value) else f"{value:.4g}") if isinstance(value, float) else value)


def _figures(cells: list[Cell], paper: PaperModel | None) -> list[Figure]:
    """One picture for every text, or of the Fréchet distance."""
    from numprune.evaluation.cells import summary
    from numprune.evaluation.images.inception import INCEPTION
    from numprune.evaluation.reproduction import paper_curves
    from numprune.ui.figures import methods_chart

    figures = []
    for data in dict.fromkeys(cell.data for cell in cells):
        group = [cell for cell in cells if cell.data == data]
        extractor = group[0].extractor
        comparable = paper is not None and extractor in (None, INCEPTION)
        curves = paper_curves(paper, data or "fid") if comparable else None
        if data is None:
            measure = "FID" if extractor == INCEPTION else f"Fréchet distance in the features of {extractor}"
        else:
            measure = f"excess loss on {data}, ln PPL pruned - ln PPL dense"
        figures.append(methods_chart(summary(group), measure, paper=curves))
    return figures
