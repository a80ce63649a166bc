"""Writes benchmarks/quality.md: every method on the embedded models, and on a small public one.

    python benchmarks/quality.py [--public FOLDER --calibration TRAIN.txt --data VALID.txt] [--only NAME]

Cells lie in benchmarks/*.csv as they are measured, so that a run that was stopped goes on; without the CSV files
everything is measured anew, which takes about an hour on two cores. --only measures one of stories, images and public.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import numprune
from numprune.cli import main as numprune_command
from numprune.evaluation.methods import DENSE, Cell, read_cells, summary
from numprune.files import write_text

FOLDER = Path(__file__).parent
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7)
TEXT_SETTINGS = ("--samples", "128", "--sequence-length", "256", "--seeds", "0,1,2", "--repetitions", "0")
IMAGE_SETTINGS = ("--seeds", "0", "--repetitions", "0", "--images", "1000", "--guidance", "1.5")

TITLES = {
    "stories": "tiny-stories, calibrated on its own samples, 128 x 256 tokens; held out: the embedded stories",
    "public": "the public 260k-parameter Llama of TinyStories (GQA, no slack), calibrated on 128 x 256 tokens of the"
    " training stories; held out: the first 120,000 bytes of the validation stories",
    "images": "tiny-images, calibrated on 128 images of its own; 1,000 drawn images a cell, guidance 1.5",
}

HEAD = """# Quality of every method

Written by `python benchmarks/quality.py`; the cells are in the CSV files beside it. All methods see the same
calibration tokens and remove the same share of the prunable parameters; FLAP's biases come on top (under 1 %). Excess
loss is ln PPL pruned - ln PPL dense on held-out text, in nats a token; the table shows its mean over calibration seeds
and, in brackets, the lowest and highest. Seconds are scoring, choosing ratios and pruning, without calibration, by
the clock: what else ran on the machine meanwhile is in them.
`healed` is the only row that trains. LLM-Pruner (`taylor`) is without its fine-tuning; Wanda-sp,
magnitude, Taylor, OSSCAR and random take the same ratio in every module, as their code does. SliceGPT narrows the
residual stream to the same number of parameters, shortcut matrices and untied output layer included.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", help="folder of the 260k model")
    parser.add_argument("--calibration", help="its training stories")
    parser.add_argument("--data", help="its held-out stories")
    parser.add_argument("--only", choices=list(TITLES))
    args = parser.parse_args()
    wanted = [args.only] if args.only else [name for name in TITLES if name != "public" or args.public]
    for name in wanted:
        _measure(name, args)
    sections = [_section(name) for name in TITLES if (FOLDER / f"{name}.csv").exists()]
    write_text(FOLDER / "quality.md", "\n".join([HEAD, *sections]))


def _measure(name: str, args: argparse.Namespace) -> None:
    ratios = ",".join(map(str, RATIOS))
    common = ("--methods", "all", "--ratios", ratios, "--device", "cpu", "--out", str(FOLDER / f"{name}.csv"))
    if name == "public":
        words = (args.public, *TEXT_SETTINGS, "--calibration", args.calibration, "--data", args.data)
    else:
        words = (f"tiny-{name}", *(TEXT_SETTINGS if name == "stories" else IMAGE_SETTINGS))
    code = numprune_command(["sweep", *words, *common])
    if code:
        raise SystemExit(code)


def _section(name: str) -> str:
    cells = read_cells(FOLDER / f"{name}.csv")
    table = summary(cells)
    dense = next(cell for cell in cells if cell.method == DENSE)
    images = dense.fid is not None
    ratios = sorted(set(table["ratio"]))
    lines = [f"## {TITLES[name]}", "", _about(dense, table), ""]
    lines += ["| method | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " | seconds at 30 % |"]
    lines += ["|---" * (len(ratios) + 2) + "|"]
    for method in numprune.METHODS:
        rows = {row.ratio: row for row in table[table["method"] == method].itertuples()}
        if not rows:
            continue
        cols = [_cell(rows[ratio], images) if ratio in rows else "" for ratio in ratios]
        seconds = f"{rows[0.3].seconds:.2f}" if 0.3 in rows else ""
        lines.append(f"| {method} | {' | '.join(cols)} | {seconds} |")
    return "\n".join([*lines, ""])


def _cell(row: object, images: bool) -> str:
    if images:
        return f"{row.measure:.1f} · {row.recognised:.1%}"
    return f"{row.measure:.3f} ({row.lowest:.3f} to {row.highest:.3f})"


def _about(dense: Cell, table: pd.DataFrame) -> str:
    where = f"{dense.device}, {dense.threads} thread{'s' if dense.threads > 1 else ''}, float32"
    counts = sorted(set(table["seeds"]))
    seeds = (
        f"{counts[0]} to {counts[-1]} calibration seeds"
        if len(counts) > 1
        else f"{counts[0]} calibration seed{'s' if counts[0] > 1 else ''}"
    )
    if dense.fid is not None:
        return (
            f"Dense: {dense.parameters:,} parameters, Fréchet distance {dense.fid:.1f} in the judge's features,"
            f" {dense.recognised:.1%} recognised. Cells: distance · recognised. {seeds} a cell; {where}."
        )
    return (
        f"Dense: {dense.parameters:,} parameters, perplexity {dense.perplexity:.3f} on {dense.tokens:,} tokens."
        f" {seeds} a cell; {where}."
    )


if __name__ == "__main__":
    main()
