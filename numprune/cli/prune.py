"""`numprune prune`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numprune
from numprune.cli.calibration import add_calibration, asked_calibration, calibrate_model, sized_for
from numprune.cli.console import Console, labelled
from numprune.cli.memory import add_memory, opened_in_its_files
from numprune.cli.options import Commands, add_command, add_model, describe, given, load_model, quiet_libraries
from numprune.files import check_output

if TYPE_CHECKING:
    from numprune import CalibrationStats, Model, PruningReport, Recipe

EXAMPLE = """\
  numprune prune tiny-stories --ratio 0.3 --set 0.mlp=0.1 --keep 2.attention:0,1 --out smaller
  numprune prune --recipe smaller/recipe.json --out again
  numprune prune tiny-stories --preset best --ratio 0.3 --out better
  numprune prune tiny-stories --uniform --round-heads 2 --out even
  numprune prune tiny-stories --preset fast --speedup 1.4 --out faster

  writes a model with 30 % of its prunable parameters removed, its recipe.json and report.json; the second line
  makes the same model from the recipe alone, the third one of that size by the best method that trains nothing.
  The fourth keeps the same counts in every layer, so that `numprune export --format stock` can write it. The last
  decodes 1.4 times as fast on this device, by heads, channels and whole modules; leave the machine to it.
  Flags that are given go before what the recipe says. --device and --dtype are not part of a recipe."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "prune", "write a smaller model", example=EXAMPLE, shared=True)
    add_model(
        parser,
        nargs="?",
        help="embedded name (tiny-stories), hub id, folder or GGUF file; may be left out when the recipe names it",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an earlier output is replaced")
    parser.add_argument("--recipe", metavar="FILE", help="a recipe.json to start from")
    add_memory(parser, "pruning")
    add_calibration(parser)
    group = parser.add_argument_group("pruning")
    group.add_argument("--ratio", type=float, metavar="R", help="share of prunable parameters to remove (default 0.3)")
    group.add_argument(
        "--speedup",
        type=float,
        metavar="X",
        help="instead of a ratio: make decoding at batch 1 so many times as fast on this device (default 1.5 of preset"
        " fast); decode times by width are measured once and kept",
    )
    group.add_argument(
        "--method",
        metavar="NAME",
        help="units (the default) removes heads and channels; slicegpt narrows the residual stream instead",
    )
    group.add_argument(
        "--scorer",
        metavar="NAME",
        help="fisher (of preset balanced, the default), newton (the paper's), newton_loop, newton_boxed, newton_greedy,"
        " osscar, taylor, flap, wanda_sp, magnitude or random",
    )
    group.add_argument(
        "--allocation",
        metavar="NAME",
        help="global (the default), uniform, paper_printed or none (no unit goes by its score)",
    )
    group.add_argument(
        "--preset",
        metavar="NAME",
        help="a whole method, which other flags change: balanced (scorer fisher, compensation network; the default"
        " without a recipe), best (also --suggest), healed (also --healing 16), fast (also --speedup 1.5; the default"
        " with --speedup) or paper; or another's: flap, wanda_sp, magnitude, taylor, osscar (also --swaps 8), slicegpt"
        " (also --method slicegpt), shortgpt (whole layers), drop (whole modules) or random",
    )
    group.add_argument(
        "--swaps",
        type=int,
        metavar="N",
        help="then exchange up to N kept and removed units of a module at a time while its loss falls (default 0)",
    )
    group.add_argument(
        "--compensation",
        metavar="NAME",
        help="network (of preset balanced, the default), residual, paper, bias or none",
    )
    group.add_argument(
        "--damping", type=float, metavar="D", help="of the compensation, as a share of the mean Gram diagonal (0.01)"
    )
    group.add_argument(
        "--scarcity",
        type=float,
        metavar="S",
        help="what network and residual raise the damping by, in multiples of itself, where there is one calibration"
        " token for every column (500)",
    )
    group.add_argument(
        "--healing", type=int, metavar="STEPS", help="steps of training after pruning (default 0: nothing is trained)"
    )
    group.add_argument("--round-heads", type=int, metavar="N", help="keep multiples of N heads (default 1)")
    group.add_argument("--round-channels", type=int, metavar="N", help="keep multiples of N channels (default 1)")
    group.add_argument(
        "--uniform",
        action=argparse.BooleanOptionalAction,
        help="keep the same number of heads and of channels in every layer, as stock model classes want it; the report"
        " says what that costs (default: no)",
    )
    group.add_argument(
        "--allow-empty", action=argparse.BooleanOptionalAction, help="let a module lose its last unit (default: no)"
    )
    group.add_argument(
        "--depth",
        choices=("none", "modules", "layers"),
        help="let whole attentions and MLPs, or whole layers, go beside heads and channels, where that is predicted to"
        " cost less (default none); with --allocation none they alone go",
    )
    group.add_argument(
        "--depth-scorer",
        metavar="NAME",
        help="what --depth goes by: loss (the default; of modules or layers), influence (ShortGPT's block influence) or"
        " angular (distance over several layers), both of layers and with --allocation none",
    )
    group.add_argument(
        "--drop",
        action="append",
        metavar="LAYER[.KIND]",
        help="drop a whole layer or module by hand, such as 12 or 12.attention; repeatable; '' drops the recipe's",
    )
    group.add_argument(
        "--set",
        dest="ratios",
        type=_entry("=", float),
        action="append",
        metavar="MODULE=R",
        help="ratio of one module, such as 3.mlp=0.5; repeatable; '3.mlp=' drops the recipe's",
    )
    group.add_argument(
        "--suggest",
        action="store_true",
        help="choose the ratio of every module that has none by the model's own loss; the recipe written holds them",
    )
    for flag, what in (("--keep", "keep"), ("--prune-units", "remove")):
        group.add_argument(
            flag,
            type=_entry(":", lambda text: tuple(int(unit) for unit in text.split(","))),
            action="append",
            metavar="MODULE:UNITS",
            help=f"{what} these units whatever their score, such as 0.attention:1,2; repeatable; "
            "'0.attention:' drops the recipe's",
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    check_output(args.out)
    recipe = _recipe(args)
    numprune.check_scorer(recipe.scorer)
    chooses_speedup = recipe.speedup is not None and not recipe.suggested
    if chooses_speedup:
        numprune.check_speedup(recipe)
    elif recipe.depth != "none" and not recipe.drop:
        numprune.check_depth(recipe)
    if args.suggest and recipe.removal != "units":
        raise numprune.InputError(
            f"--suggest chooses ratios of units, which {recipe.removal} does not remove; drop it."
        )
    if _suggests(args) and recipe.uniform:
        raise numprune.InputError(
            "Suggested ratios (--suggest, presets best and healed) differ from layer to layer; leave --uniform out."
        )
    name = args.model or recipe.model
    if name is None:
        raise numprune.InputError("There is no model to prune; give MODEL or a --recipe that names one.")
    why, model = opened_in_its_files(name, recipe, args, console)
    if why is not None and _suggests(args):
        raise numprune.InputError(
            f"Suggested ratios need {name} in memory, and it does not fit; leave --suggest out, or allow more --memory."
        )
    if why is not None and chooses_speedup:
        raise numprune.InputError(
            f"A speed-up is measured on {name} in memory, and it does not fit; allow more --memory, or give a recipe"
            " that was carried out."
        )
    if why is not None:
        _pruned_by_layers(model, recipe, why, args, console, began)
        return
    model = load_model(name, args, console)
    recipe = model.adopt(recipe)
    if recipe.removal == "slicegpt":
        from numprune.slicing.stream import check_sliceable

        check_sliceable(model.adapter, model.config, model.name)
    recipe = recipe.replace(calibration=sized_for(model, args, recipe.calibration, console))
    stats = calibrate_model(model, recipe.calibration, console)
    pruned = _pruned(model, stats, recipe, args, console)
    if console.writes:
        pruned.save(args.out)
    _report(args.out, model, pruned, time.monotonic() - began, console)


def _pruned_by_layers(
    model: Model, recipe: Recipe, why: str, args: argparse.Namespace, console: Console, began: float
) -> None:
    from numprune.layerwise import prune_layerwise

    recipe = recipe.replace(calibration=sized_for(model, args, recipe.calibration, console))
    with console.progress() as progress:
        prune_layerwise(model, recipe, args.out, device=args.device, dtype=args.dtype, why=why, progress=progress)
    with quiet_libraries(console):
        pruned = numprune.load(args.out, device="cpu", dtype="checkpoint")
    _report(args.out, model, pruned, time.monotonic() - began, console)


def _pruned(model: Model, stats: CalibrationStats, recipe: Recipe, args: argparse.Namespace, console: Console) -> Model:
    with console.progress() as progress:
        if recipe.removal == "slicegpt":
            from numprune.slicing.principal import slice_by_recipe

            return slice_by_recipe(model, stats, recipe, progress=progress)
        # The same scores the dashboard goes by.
        scores = numprune.shipped_scores(model, recipe.scorer, recipe.calibration)
        if scores is None:
            scores = numprune.score(model, stats, scorer=recipe.scorer, progress=progress)
        if _suggests(args):
            recipe = numprune.suggest(model, stats, scores, recipe, progress=progress)
        if recipe.speedup is None:
            recipe = numprune.with_depth(model, stats, scores, recipe, progress=progress)
        else:
            recipe = numprune.with_speedup(model, stats, scores, recipe, progress=progress)
        plan = numprune.allocate(scores, recipe)
        pruned = numprune.prune(model, plan, stats, progress=progress)
        if recipe.speedup is not None and console.processes == 1:
            pruned.report.notes.append(numprune.reached_speedup(model, pruned, plan, progress=progress))
        if args.uniform:
            from numprune.evaluation.uniform import cost_of_uniform

            pruned.report.notes.append(cost_of_uniform(model, pruned, stats, scores, progress=progress))
        return pruned


def _suggests(args: argparse.Namespace) -> bool:
    return args.suggest or bool(args.preset and numprune.preset(args.preset).suggests)


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe file or the preset, with the given flags on top."""
    recipe = numprune.Recipe.read(args.recipe) if args.recipe else numprune.Recipe()
    default = "fast" if args.speedup is not None else numprune.DEFAULT_PRESET
    preset = args.preset or (None if args.recipe else default)
    if preset:
        recipe = numprune.preset(preset).applied(recipe)
    names = ("ratio", "scorer", "allocation", "swaps", "compensation", "damping", "scarcity", "healing")
    names += ("round_heads", "round_channels", "uniform", "allow_empty", "depth", "depth_scorer")
    if (args.depth or "none") != "none" and args.drop:
        raise numprune.InputError("--drop goes by hand and --depth by scores; give one of them.")
    if args.ratio is not None and (args.speedup is not None or args.preset == "fast"):
        raise numprune.InputError(
            "--ratio is a budget of parameters and a speed-up one of time; give --ratio, or --speedup with preset fast."
        )
    if args.suggest and (args.speedup is not None or recipe.speedup is not None):
        raise numprune.InputError("--suggest spends a budget of parameters; leave it out, or the speed-up.")
    if args.speedup is not None:
        recipe = recipe.for_speedup(args.speedup)
    elif recipe.suggested and args.ratios:
        recipe = recipe.replace(speedup=None)
    if args.ratio is not None:
        recipe = recipe.at(args.ratio)
    if args.drop is not None:
        recipe = recipe.replace(depth="none", drop=[name for name in args.drop if name])
    elif args.depth not in (None, recipe.depth) or args.depth_scorer not in (None, recipe.depth_scorer):
        recipe = recipe.replace(drop=())
    return recipe.replace(
        **given(removal=args.method, **{name: getattr(args, name) for name in names}),
        calibration=asked_calibration(args, recipe.calibration),
        ratios=_merged(recipe.ratios, args.ratios),
        suggested=recipe.suggested and not args.ratios,
        keep=_merged(recipe.keep, args.keep),
        prune=_merged(recipe.prune, args.prune_units),
    )


def _entry(separator: str, convert: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Argument type `MODULE<separator>VALUE`; the value is None when nothing follows."""

    def parse(text: str) -> tuple[str, Any]:
        module, sign, value = text.partition(separator)
        if not sign:
            raise argparse.ArgumentTypeError(f"'{text}' has no '{separator}'; write 3.mlp=0.5 or 0.attention:1,2")
        try:
            return module, convert(value) if value else None
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"'{value}' in '{text}' is not a number") from error

    return parse


def _merged(of_recipe: dict[Any, Any], flags: list[tuple[str, Any]] | None) -> dict[Any, Any]:
    """The recipe's entries with the flags' ones in their place; a flag without a value drops the entry."""
    entries = {**of_recipe, **{numprune.ModuleKey.parse(module): value for module, value in flags or ()}}
    return {key: value for key, value in entries.items() if value is not None}


def _report(out: str, dense: Model, pruned: Model, seconds: float, console: Console) -> None:
    report = pruned.report
    before, after = _mean_errors(report)
    console.notes([*dense.notes, *report.notes])
    result = {
        **describe(pruned),
        "out": out,
        "recipe": pruned.recipe.to_dict(),
        "report": report.to_dict(),
        "mean_error_before": before,
        "mean_error_after": after,
        "seconds": seconds,
    }
    rows = {
        "ratio": f"{report.ratio_asked:.2%} asked, {report.ratio_reached:.2%} reached, of the prunable parameters",
        "parameters": f"{report.parameters_before:,} before, {report.parameters_after:,} after",
        "bytes": f"{report.bytes_before:,} before, {report.bytes_after:,} after ({report.dtype})",
    }
    if report.modules:
        rows["mean error"] = f"{before:.4f} before compensation ({report.compensation}), {after:.4f} after"
    rows["time"] = f"{seconds:.1f} s on {report.device}"
    console.result(result, f"{dense.name} -> {out}\n{labelled(rows)}")


def _mean_errors(report: PruningReport) -> tuple[float, float]:
    """Mean relative error of the pruned modules' outputs, before and after compensation; 0 when none was pruned."""
    cut = [module for module in report.modules if module.kept < module.units]
    if not cut:
        return 0.0, 0.0
    return sum(m.error_before for m in cut) / len(cut), sum(m.error_after for m in cut) / len(cut)
