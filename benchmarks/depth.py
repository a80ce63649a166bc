"""Width alone, depth alone and both, at the same share of the prunable parameters: loss and speed in one table.

    python benchmarks/depth.py tiny-stories --models DIR --out benchmarks/depth.csv --page benchmarks/depth.md
    python benchmarks/depth.py FOLDER --calibration a.txt,b.txt --data c.txt --models DIR --out ...

Every row is in the CSV as soon as it is measured, so that the same command goes on where it was stopped. First come the
losses, and the pruned models are kept in --models; then, on an idle machine, the speeds, all models of a ratio and the
dense one in turn (--only losses or --only speeds does one of both).
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch

import numprune
from numprune import Model, Recipe
from numprune.allocation.depth import depth_of
from numprune.evaluation.speed_comparison import Timed

WIDTH, BOTH = "width", ("width and modules", "width and layers")
WAYS = {
    WIDTH: ("balanced", {}),
    "layers by the loss and fitted": ("balanced", {"depth": "layers", "allocation": "none"}),
    "modules by the loss and fitted": ("balanced", {"depth": "modules", "allocation": "none"}),
    BOTH[0]: ("balanced", {"depth": "modules"}),
    BOTH[1]: ("balanced", {"depth": "layers"}),
    "shortgpt": ("shortgpt", {}),
    "drop": ("drop", {}),
}
"""What is compared: a preset, and what of its recipe is otherwise."""
COLUMNS = (
    *("model", "way", "ratio", "reached", "layers", "dropped", "tokens", "loss", "standard_error", "seconds"),
    *("calibration", "decode", "decode_low", "decode_high", "prefill", "prefill_low", "prefill_high"),
    *("runs", "device", "threads"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.4,0.5")
    parser.add_argument("--ways", default=",".join(WAYS), help="separated by commas")
    parser.add_argument("--calibration", default="self")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--data", default=None, help="held-out texts, separated by commas; embedded stories by default")
    parser.add_argument("--max-tokens", type=int, default=None, help="of each text")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", type=Path, required=True, help="folder for the pruned models")
    parser.add_argument("--only", choices=("losses", "speeds"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=None, help="a page of all rows of the CSV")
    args = parser.parse_args()
    model = numprune.load(args.model, device=args.device, dtype="float32")
    if args.only != "speeds":
        measure_losses(model, args)
    if args.only != "losses":
        measure_speeds(model, args)
    if args.page is not None:
        args.page.write_text(page(args.out), encoding="utf8")


def measure_losses(model: Model, args: argparse.Namespace) -> None:
    """Prune and measure the rows that are missing."""
    name = Path(args.model).name
    done = {(row["model"], row["way"], float(row["ratio"])) for row in rows(args.out)}
    ratios = [float(ratio) for ratio in args.ratios.split(",")]
    missing = [(way, ratio) for ratio in ratios for way in args.ways.split(",") if (name, way, ratio) not in done]
    if (name, "dense", 0.0) not in done:
        add(args.out, {"model": name, "way": "dense", "ratio": 0.0, "layers": model.layers, **loss(model, args)})
    if not missing:
        return
    stats = numprune.calibrate(model, args.calibration, samples=args.samples, sequence_length=args.sequence_length)
    kept: dict[str, object] = {}

    def once(what: str, make: object) -> object:
        if what not in kept:
            kept[what] = make()
        return kept[what]

    for way, ratio in missing:
        began = time.monotonic()
        method, changes = WAYS[way]
        recipe = numprune.preset(method).applied(Recipe(ratio=ratio)).replace(**changes)
        scores = once(recipe.scorer, lambda scorer=recipe.scorer: numprune.score(model, stats, scorer=scorer))
        if recipe.depth != "none":
            of = f"{recipe.depth} {recipe.depth_scorer}"
            depth = once(of, lambda asked=recipe: depth_of(model, stats, asked, most=max(ratios)))
            recipe = numprune.choose_depth(scores, depth, recipe)
        width = row_of(args.out, name, WIDTH, ratio)
        if width is not None and same_as_width(way, recipe.drop):
            add(args.out, {**width, "way": way, "seconds": ""})
            continue
        plan = numprune.allocate(scores, recipe)
        pruned = numprune.prune(model, plan, stats)
        pruned.save(folder(args, way, ratio))
        row = {
            "model": name,
            "way": way,
            "ratio": ratio,
            "reached": round(plan.ratio_reached, 4),
            "layers": pruned.layers,
            "dropped": " ".join(map(str, recipe.drop)),
            "seconds": round(time.monotonic() - began, 1),
            "calibration": calibration(args),
            **loss(pruned, args),
        }
        add(args.out, row)
        print(row, flush=True)


def measure_speeds(model: Model, args: argparse.Namespace) -> None:
    """How many times as fast the pruned models are as the dense one, at batch 1, where that is not known yet."""
    name = Path(args.model).name
    found = rows(args.out)
    rest = [row for row in found if row["model"] == name and row["way"] != "dense" and not row["decode"]]
    untimed = [row for row in rest if not same_as_width(row["way"], row["dropped"])]
    for ratio in dict.fromkeys(row["ratio"] for row in untimed):
        own = [row for row in untimed if row["ratio"] == ratio]
        pruned = {row["way"]: numprune.load(folder(args, row["way"], float(ratio)), dtype="float32") for row in own}
        timed = numprune.compare_speed({"dense": model, **pruned}, repetitions=args.repetitions).models[1:]
        for row, speed in zip(own, timed, strict=True):
            row |= {"runs": args.repetitions, "device": str(model.device), "threads": torch.get_num_threads()}
            row |= gains(speed)
        write(args.out, found)


def same_as_width(way: str, dropped: object) -> bool:
    """Whether a way that may take modules as a whole took none, and so is width alone."""
    return way in BOTH and not dropped


def row_of(path: Path, model: str, way: str, ratio: float) -> dict[str, str] | None:
    return next((r for r in rows(path) if (r["model"], r["way"], float(r["ratio"])) == (model, way, ratio)), None)


def gains(speed: Timed) -> dict[str, float]:
    """How many times as fast as the dense model one decodes and reads a prompt: median, lowest and highest."""
    values = {}
    for what in ("decode", "prefill"):
        middle, low, high = getattr(speed, f"{what}_gain")
        values |= {what: round(middle, 3), f"{what}_low": round(low, 3), f"{what}_high": round(high, 3)}
    return values


def folder(args: argparse.Namespace, way: str, ratio: float) -> Path:
    """Where a pruned model is kept."""
    return args.models / f"{Path(args.model).name} {way} {ratio:g}".replace(" ", "-")


def calibration(args: argparse.Namespace) -> str:
    texts = " and ".join(Path(text).stem for text in args.calibration.split(","))
    return f"{args.samples} x {args.sequence_length} tokens of {texts}"


def loss(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Mean over the texts."""
    texts = args.data.split(",") if args.data else [numprune.held_out_text()]
    most = {"max_tokens": args.max_tokens} if args.max_tokens else {}
    found = [numprune.perplexity(model, text, sequence_length=args.sequence_length, **most) for text in texts]
    error = sum(each.standard_error**2 for each in found) ** 0.5 / len(found)
    return {
        "tokens": sum(each.tokens for each in found),
        "loss": round(sum(each.nll for each in found) / len(found), 4),
        "standard_error": round(error, 4),
    }


def rows(path: Path) -> list[dict[str, str]]:
    """The rows that are there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


def add(path: Path, row: dict[str, object]) -> None:
    """Add a row."""
    write(path, [*rows(path), row])


def write(path: Path, table: list[dict[str, object]], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write all rows; the file is whole at any time."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    partial.replace(path)


def page(path: Path) -> str:
    """The tables of all models in a file."""
    parts = [
        "# Width, depth, and both",
        "Written by `python benchmarks/depth.py` from [depth.csv](depth.csv). Excess loss in nats a token on held-out"
        " text over the dense model, then how many times as fast it decodes and reads a prompt at batch 1, both models"
        " timed in turn: median (lowest to highest).",
    ]
    found = rows(path)
    for model in dict.fromkeys(row["model"] for row in found):
        own = [row for row in found if row["model"] == model]
        dense = next(row for row in own if row["way"] == "dense")
        ratios = sorted({float(row["ratio"]) for row in own} - {0.0})
        first = next((row for row in own if row["decode"]), None)
        text = own[1]["calibration"]
        calibrated = f"calibrated on {text} (one seed)" if text else "one calibration seed"
        timed = f"{first['device']}, {first['threads']} threads" if first else "not timed"
        if first and first["runs"]:
            timed = f"{first['runs']} timed runs, {timed}"
        parts.append(f"## {model}")
        parts.append(
            f"{dense['tokens']} tokens, loss of the dense model {dense['loss']} (standard error"
            f" {dense['standard_error']}), {dense['layers']} layers, {calibrated}, {timed}, float32."
        )
        lines = ["| | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |", "|---" * (len(ratios) + 1) + "|"]
        for way in dict.fromkeys(row["way"] for row in own):
            of_way = {float(row["ratio"]): row for row in own if row["way"] == way}
            if way != "dense":
                cells = [cell(of_way.get(ratio), dense) for ratio in ratios]
                lines.append(f"| {way} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def cell(row: dict[str, str] | None, dense: dict[str, str]) -> str:
    if row is None:
        return ""
    if same_as_width(row["way"], row["dropped"]):
        return "the same plan as width"
    lost = float(row["loss"]) - float(dense["loss"])
    reached = "" if abs(float(row["reached"]) - float(row["ratio"])) < 0.005 else f" at {float(row['reached']):.0%}"
    shown = {"decode": "decode", "prefill": "prompt"} if row["decode"] else {}
    speeds = [f"{say} {row[name]} ({row[f'{name}_low']} to {row[f'{name}_high']})" for name, say in shown.items()]
    return "<br>".join([f"**{lost:.3f}**{reached}, {row['layers']} layers", *speeds])


if __name__ == "__main__":
    main()
