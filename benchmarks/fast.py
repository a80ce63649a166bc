"""A budget of decode time: width, whole modules and both, at the same predicted speed: loss and measured speed.

    python benchmarks/fast.py FOLDER --calibration a.txt,b.txt --data c.txt,d.txt --models DIR --out FILE.csv

First the models are pruned and kept in --models, where a next run finds them, and their losses are measured; then, on
an idle machine, their speeds: all models of a speed-up and the dense one in turn. (--only losses or --only speeds does
one of both.) Decode times by width are those that `numprune bench latency` keeps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import depth
import numpy as np
import torch
from depth import calibration, gains, loss, rows

import numprune
from numprune import Latency, Model, PruningPlan, Recipe
from numprune.allocation.trial import trial_for
from numprune.evaluation.time_budget import SEQUENCES, with_prices_of_the_rest

COLUMNS = (
    *("model", "way", "speedup", "predicted", "reached", "dropped", "tokens", "loss", "standard_error", "calibration"),
    *("decode", "decode_low", "decode_high", "prefill", "prefill_low", "prefill_high", "runs", "device", "threads"),
)
DENSE = "dense"


class Work:
    """What the ways share, made when it is first needed."""

    def __init__(self, model: Model, args: argparse.Namespace) -> None:
        self.model, self.args = model, args
        self.highest = max(float(speedup) for speedup in args.speedups.split(","))

    @cached_property
    def stats(self) -> numprune.CalibrationStats:
        size = {"samples": self.args.samples, "sequence_length": self.args.sequence_length}
        return numprune.calibrate(self.model, self.args.calibration, **size)

    @cached_property
    def scores(self) -> numprune.ScoreTable:
        return numprune.score(self.model, self.stats, scorer="fisher")

    @cached_property
    def latency(self) -> Latency:
        return numprune.latency_of(self.model)

    @cached_property
    def whole(self) -> numprune.DepthScores:
        """Whole modules by the loss for the time they save, until they alone are as fast as is asked for at most."""
        savings = {key: float(self.latency.of_module(key.kind, size)) for key, size in self.latency.modules.items()}
        due = self.latency.dense * (1 - 1 / self.highest)
        return numprune.score_depth(self.model, self.stats, most=due / sum(savings.values()), savings=savings)

    def speed(self, plan: PruningPlan) -> float:
        """How many times as fast a plan is predicted to decode."""
        return self.latency.speedup({key: len(kept) * plan.costs[key] for key, kept in plan.keep.items()})

    def width(self, speedup: float) -> Recipe:
        """The default method at the least ratio that is predicted to be so fast."""
        recipe, low, high = numprune.preset("balanced").applied(Recipe()), 0.0, 0.95
        for _ in range(30):
            middle = (low + high) / 2
            fast = self.speed(numprune.allocate(self.scores, recipe.at(middle))) >= speedup
            low, high = (low, middle) if fast else (middle, high)
        return recipe.at(high)

    def modules(self, speedup: float) -> Recipe:
        """The fewest whole modules that are predicted to be so fast."""
        recipe = numprune.preset("balanced").applied(Recipe()).replace(allocation="none")
        return next(
            recipe.replace(depth="modules", drop=gone)
            for gone in self.whole.gone
            if self.latency.speedup(dict.fromkeys(gone, 0)) >= speedup
        )

    def fast(self, speedup: float) -> Recipe:
        """As the preset chooses, but with whole modules scored once for all speed-ups."""
        recipe = numprune.preset("fast").applied(Recipe(speedup=speedup))
        trial = trial_for(self.model, self.stats, recipe, SEQUENCES)
        chosen = numprune.choose_speedup(self.scores, self.whole, self.latency, recipe, trial=trial)
        return with_prices_of_the_rest(self.model, self.stats, self.scores, self.latency, recipe, chosen, trial=trial)

    def width_by_time(self, speedup: float) -> Recipe:
        recipe = numprune.preset("fast").applied(Recipe(speedup=speedup)).replace(depth="none")
        return numprune.choose_speedup(self.scores, None, self.latency, recipe)


WAYS: dict[str, Callable[[Work, float], Recipe]] = {
    "width, by parameters": Work.width,
    "width, by time": Work.width_by_time,
    "modules, by time": Work.modules,
    "fast": Work.fast,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--speedups", default="1.25,1.5")
    parser.add_argument("--ways", default="; ".join(WAYS), help="separated by semicolons")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--data", required=True, help="held-out texts, separated by commas")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of each text")
    parser.add_argument("--repetitions", type=int, default=7)
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
    work, name = Work(model, args), Path(args.model).name
    done = {(row["model"], row["way"], row["speedup"]) for row in rows(args.out)}
    if (name, DENSE, "") not in done:
        write(args.out, [*rows(args.out), {"model": name, "way": DENSE, **loss(model, args)}])
    for speedup in args.speedups.split(","):
        for way in args.ways.split("; "):
            recipe_for = WAYS[way]
            if (name, way, speedup) in done:
                continue
            folder = folder_of(args, way, speedup)
            if not folder.is_dir():
                plan = numprune.allocate(work.scores, recipe_for(work, float(speedup)))
                numprune.prune(model, plan, work.stats).save(folder)
            pruned = numprune.load(folder, device=args.device, dtype="float32")
            sizes = {key: size * block_cost(model, key) for key, size in original_units(model, pruned).items()}
            row = {
                "model": name,
                "way": way,
                "speedup": speedup,
                "predicted": round(work.latency.speedup(sizes), 3),
                "reached": round(pruned.report.ratio_reached, 4),
                "dropped": " ".join(map(str, pruned.recipe.drop)),
                **loss(pruned, args),
                "calibration": calibration(args),
            }
            write(args.out, [*rows(args.out), row])
            print(row, flush=True)


def original_units(dense: Model, pruned: Model) -> dict[numprune.ModuleKey, int]:
    """The units that every module of the dense model has left."""
    origins = pruned.origins or range(dense.layers)
    left = {numprune.ModuleKey(origins[key.layer], key.kind): units for key, units in pruned.units().items()}
    return {key: left.get(key, 0) for key in dense.units()}


def block_cost(model: Model, key: numprune.ModuleKey) -> int:
    return next(block.cost for block in model.blocks if block.key == key)


def measure_speeds(model: Model, args: argparse.Namespace) -> None:
    """How many times as fast the pruned models are as the dense one, at batch 1, where that is not known yet."""
    found = rows(args.out)
    untimed = [row for row in found if row["way"] != DENSE and not row["decode"]]
    for speedup in dict.fromkeys(row["speedup"] for row in untimed):
        own = [row for row in untimed if row["speedup"] == speedup]
        pruned = {row["way"]: numprune.load(folder_of(args, row["way"], speedup), dtype="float32") for row in own}
        timed = numprune.compare_speed({DENSE: model, **pruned}, repetitions=args.repetitions).models[1:]
        for row, speed in zip(own, timed, strict=True):
            row |= {
                "runs": args.repetitions,
                "device": str(model.device),
                "threads": torch.get_num_threads(),
                **gains(speed),
            }
        write(args.out, found)


def folder_of(args: argparse.Namespace, way: str, speedup: str) -> Path:
    """Where a pruned model is kept."""
    return args.models / f"{Path(args.model).name} {way} {speedup}".replace(",", "").replace(" ", "-")


def write(path: Path, table: list[dict[str, object]]) -> None:
    depth.write(path, table, COLUMNS)


def page(path: Path) -> str:
    """The table of a file."""
    found = rows(path)
    dense, first = found[0], next(row for row in found if row["decode"])
    lines = [
        "# A budget of decode time",
        "Written by `python benchmarks/fast.py` from [fast.csv](fast.csv). Every way to prune is taken to the same"
        " predicted speed of decoding at batch 1. Excess loss in nats a token on held-out text over the dense model;"
        " how many times as fast it decodes, and reads a prompt, the models of a speed-up and the dense one in turn:"
        " median (lowest to highest).",
        f"{dense['model']}: {dense['tokens']} tokens, loss of the dense model {dense['loss']} (standard error"
        f" {dense['standard_error']}), calibrated on {first['calibration']} (one seed), {first['runs']} timed runs,"
        f" {first['device']}, {first['threads']} threads, float32.",
        "| asked for | way | parameters that go | modules gone | excess loss | decode | prompt |\n|" + "---|" * 7,
    ]
    for row in found[1:]:
        excess = float(row["loss"]) - float(dense["loss"])
        speeds = [
            f"{row[what]} ({row[f'{what}_low']} to {row[f'{what}_high']})" if row[what] else ""
            for what in ("decode", "prefill")
        ]
        share, gone = f"{float(row['reached']):.1%}", len(row["dropped"].split())
        lines[-1] += f"\n| {row['speedup']}x | {row['way']} | {share} | {gone} | {excess:.3f} | {' | '.join(speeds)} |"
    return "\n\n".join([*lines, *equal_speed(found)]) + "\n"


def equal_speed(found: list[dict[str, str]]) -> list[str]:
    """What the other ways lose where they decode as fast as `fast` did, between their points and the dense model."""
    dense, points = float(found[0]["loss"]), {}
    for row in found[1:]:
        if row["decode"]:
            points.setdefault(row["way"], [(1.0, 0.0)]).append((float(row["decode"]), float(row["loss"]) - dense))
    told = []
    for speed, excess in points.pop("fast", [])[1:]:
        others = {way: np.interp(speed, *zip(*sorted(own), strict=True), right=np.nan) for way, own in points.items()}
        losses = [f"{way}: {'not reached' if np.isnan(lost) else f'{lost:.3f}'}" for way, lost in others.items()]
        least = np.nanmin([*others.values(), np.inf])
        told.append(
            f"Where it decodes {speed:g} times as fast, measured, `fast` loses {excess:.3f}; by straight lines between"
            f" their own points and the dense model the others lose there ({'; '.join(losses)})."
            + ("" if np.isinf(least) else f" That is {excess / least:.2f} of the least of them.")
        )
    return told


if __name__ == "__main__":
    main()
