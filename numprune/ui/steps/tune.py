"""Step 3: choose how much goes, overall and layer by layer, and see at once what would be left."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.allocation.search import sensitivity, suggest
from numprune.errors import InputError, NumpruneError
from numprune.evaluation.footprint import sizes
from numprune.plan.plan import PruningPlan
from numprune.plan.presets import METHODS, method_of
from numprune.plan.recipe import Recipe
from numprune.scoring import ScoreTable, check_scorer
from numprune.ui import html, ratios
from numprune.ui.figures import sensitivity_curves
from numprune.ui.page import ACCELERATOR, LIVE, Updates, owner_of, toasts
from numprune.ui.ratios import Edit, edited, ratio_table
from numprune.ui.session import Session
from numprune.ui.steps.load import unit_name
from numprune.ui.workbench import Loaded, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

ALLOCATIONS = {
    "global": "one threshold for all",
    "uniform": "same ratio everywhere",
    "attention": "attention only",
    "mlp": "MLP only",
    "ends": "protect first and last layers",
    "paper_printed": "as printed in the paper",
}
SENSITIVITY = "What each module costs"
CONTEXT = 1000
"""Tokens in the cache, for the figures per token."""

SAVE_RECIPE = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "recipe.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


@dataclass
class TuneStep:
    """Components of step 3."""

    method: gr.Dropdown
    ratio: gr.Slider
    preset: gr.Radio
    round_channels: gr.Dropdown
    uniform: gr.Checkbox
    undo: gr.Button
    redo: gr.Button
    reset: gr.Button
    suggest: gr.Button
    curves: gr.Plot
    suggested: gr.State
    prediction: gr.HTML
    table: gr.HTML
    recipe: gr.Code
    save: gr.Button
    open: gr.UploadButton
    repeat: gr.Code

    @property
    def inputs(self) -> set[Any]:
        return {self.ratio, self.preset, self.round_channels, self.uniform}

    @property
    def outputs(self) -> set[Any]:
        return {self.table, self.prediction, self.recipe, self.repeat, self.preset, self.method}

    def show(self, loaded: Loaded, plan: PruningPlan) -> Updates:
        recipe = plan.recipe
        return {
            self.table: ratio_table(plan, loaded.model.layers, unit_name(loaded)),
            self.prediction: prediction(loaded, plan),
            self.recipe: recipe.to_json(),
            self.repeat: command_line(recipe),
            self.preset: preset_of(recipe, loaded.scores),
            self.method: method_of(recipe),
        }

    def settings(self, recipe: Recipe) -> Updates:
        """The controls, set to a recipe that did not come from them."""
        return {
            self.ratio: recipe.ratio,
            self.round_channels: recipe.round_channels,
            self.uniform: recipe.uniform,
        }


def preset(name: str, scores: ScoreTable) -> dict[str, Any]:
    """The allocation and the ratios of a preset.

    Raises:
        InputError: there is none of that name.
    """
    last = max(key.layer for key in scores.modules)
    whole = {
        "attention": [key for key in scores.modules if key.kind == "mlp"],
        "mlp": [key for key in scores.modules if key.kind == "attention"],
        "ends": [key for key in scores.modules if key.layer in (0, last)],
    }
    if name not in ALLOCATIONS:
        raise InputError(f"Preset '{name}' is not known; use {', '.join(ALLOCATIONS)}.")
    allocation = name if name not in whole else "global"
    return {"allocation": allocation, "ratios": dict.fromkeys(whole.get(name, ()), 0.0)}


def preset_of(recipe: Recipe, scores: ScoreTable) -> str | None:
    """The preset a recipe follows, None when ratios were set by hand."""
    held = {"allocation": recipe.allocation, "ratios": recipe.ratios}
    return next((name for name in ALLOCATIONS if preset(name, scores) == held), None)


def prediction(loaded: Loaded, plan: PruningPlan) -> str:
    """What would be left, exact to the parameter."""
    before, after = (sizes(loaded.model, each, context=CONTEXT) for each in (None, plan))
    items = [
        (
            f"{after.parameters:,}",
            f"parameters of {before.parameters:,} ({change(after.parameters, before.parameters)})",
        ),
        (f"{plan.ratio_reached:.1%}", f"of the prunable parameters go ({plan.ratio_asked:.0%} asked for)"),
        (html.memory(after.bytes), f"weights, now {html.memory(before.bytes)}"),
        (
            html.memory(after.kv_bytes * 1000),
            f"KV cache per 1,000 tokens, now {html.memory(before.kv_bytes * 1000)}",
        ),
        (
            f"{html.count(after.flops)}FLOP",
            f"per token after {CONTEXT:,} tokens ({change(after.flops, before.flops)})",
        ),
    ]
    return html.cards(items) + html.notes(plan.remarks)


def change(after: int, before: int) -> str:
    return f"{after / before - 1:+.1%}"


def command_line(recipe: Recipe) -> str:
    """The command that repeats the recipe; with settings only a file can hold, the one that reads it."""
    if recipe.keep or recipe.prune:
        return "numprune prune --recipe recipe.json --out pruned"
    words = ["numprune", "prune", str(recipe.model), "--ratio", f"{recipe.ratio:g}"]
    calibration = recipe.calibration
    words += ["--calibration", str(calibration.data), "--samples", str(calibration.samples)]
    words += ["--sequence-length", str(calibration.sequence_length), "--seed", str(calibration.seed)]
    words += ["--method", recipe.removal] if recipe.removal != "units" else []
    words += ["--scorer", recipe.scorer, "--allocation", recipe.allocation, "--compensation", recipe.compensation]
    words += ["--swaps", str(recipe.swaps)] if recipe.swaps else []
    words += ["--damping", f"{recipe.damping:g}"]
    words += ["--healing", str(recipe.healing)] if recipe.healing else []
    words += ["--round-channels", str(recipe.round_channels)] if recipe.round_channels > 1 else []
    words += ["--uniform"] if recipe.uniform else []
    for key, ratio in sorted(recipe.ratios.items()):
        words += ["--set", f"{key}={ratio:g}"]
    return shlex.join([*words, "--out", "pruned"])


def adopted(session: Session, recipe: Recipe) -> Session:
    """The session with an opened recipe's decisions; it must be for the model and the calibration on the page.

    Raises:
        InputError: it was made with another calibration.
    """
    if recipe.calibration != session.recipe.calibration:
        raise InputError(
            f"The recipe was made with calibration {recipe.calibration.data} {recipe.calibration.samples} x"
            f" {recipe.calibration.sequence_length}; load the model with it in step 1."
        )
    names = (
        "removal",
        "scorer",
        "allocation",
        "ratio",
        "ratios",
        "suggested",
        "keep",
        "prune",
        "swaps",
        "compensation",
        "damping",
        "healing",
    )
    names += ("round_heads", "round_channels", "uniform", "allow_empty")
    return session.changed("", **{name: getattr(recipe, name) for name in names})


def build() -> TuneStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown(
            "## 3 · Tune\nMove the ratio and watch the plan. In the table, write a ratio to lock a module at it; the"
            " others share what is left."
        )
        method = gr.Dropdown(
            [(f"{name}: {each.about}", name) for name, each in METHODS.items()],
            value="paper",
            label="Method",
            info="Sets scorer, allocation, compensation and healing in one step. The page goes over to balanced as soon"
            " as it is scored for it. best and healed also suggest ratios, which takes longer; slicegpt leaves the plan"
            " empty.",
        )
        with gr.Row():
            ratio = gr.Slider(
                0,
                0.9,
                0.3,
                step=0.01,
                label="Ratio",
                info="Share of the prunable parameters to remove.",
                scale=2,
                min_width=300,
            )
            preset_choice = gr.Radio(
                [(label, name) for name, label in ALLOCATIONS.items()],
                value="global",
                label="Allocation",
                min_width=320,
                info="How the layers share the ratio. A preset replaces the locks in the table.",
                scale=3,
            )
        with gr.Row():
            undo = gr.Button("Undo", size="sm", min_width=80)
            redo = gr.Button("Redo", size="sm", min_width=80)
            reset = gr.Button("Reset", size="sm", min_width=80)
            suggest_button = gr.Button("Suggest ratios", size="sm", min_width=140, variant="primary")
        gr.Markdown(
            "Suggest ratios prunes every module alone, measures what that costs the model's own loss on the"
            " calibration text, and fills the table with the cheapest way to the overall ratio.",
            elem_classes="np-help",
        )
        predicted = gr.HTML(html.empty("The plan appears here once a model is scored."))
        table = gr.HTML(
            html.empty("The ratios of the layers appear here."),
            js_on_load=ratios.JS,
            elem_id="np-ratios",
        )
        curves = gr.Plot(label="What each module costs alone", visible=False)
        with gr.Accordion("Recipe, rounding and command line", open=False):
            with gr.Row():
                round_channels = gr.Dropdown(
                    [1, 8, 32, 64, 128, 256],
                    value=1,
                    label="Round channels to multiples of",
                    info="Widths that kernels and quantised formats like; 1 does not round.",
                    min_width=300,
                )
                uniform = gr.Checkbox(
                    False,
                    label="The same counts in every layer",
                    info="For model classes whose layers are all alike (format stock in step 6); Prune tells the cost.",
                    min_width=300,
                )
            repeat = gr.Code(
                label="The same from the command line",
                language="shell",
                interactive=False,
                wrap_lines=True,
                lines=2,
                show_line_numbers=False,
            )
            recipe = gr.Code(label="Recipe", language="json", interactive=False, max_lines=12)
            with gr.Row():
                save = gr.Button("Save recipe", size="sm")
                opener = gr.UploadButton("Open recipe", size="sm", file_types=[".json"], type="filepath")
    return TuneStep(
        method=method,
        ratio=ratio,
        preset=preset_choice,
        round_channels=round_channels,
        uniform=uniform,
        undo=undo,
        redo=redo,
        reset=reset,
        suggest=suggest_button,
        curves=curves,
        suggested=gr.State(),
        prediction=predicted,
        table=table,
        recipe=recipe,
        save=save,
        open=opener,
        repeat=repeat,
    )


def wire(page: Page) -> None:
    step = page.tune

    def change(name: str, value: Any) -> Any:
        """A handler that sets one value of the recipe from one control."""

        def handler(given: Updates) -> Updates:
            with toasts():
                chosen = value(given)
                return page.planned(given[page.session].changed(name, **chosen), given)

        return handler

    def choose_preset(given: Updates) -> Updates:
        with toasts():
            session = given[page.session]
            loaded = page.workbench.dense(session)
            return page.planned(session.changed("", **preset(given[step.preset], loaded.scores)), given)

    def choose_uniform(given: Updates) -> Updates:
        session = given[page.session]
        try:
            return page.planned(session.changed("", uniform=bool(given[step.uniform])), given)
        except NumpruneError as error:
            gr.Warning(str(error), title="That did not work")
            return {step.uniform: session.recipe.uniform}

    def edit(given: Updates, event: gr.EventData) -> Updates:
        session = given[page.session]
        try:
            done = edited(session, page.workbench.plan(session), Edit.parse(event._data))
            return page.planned(done, given)
        except NumpruneError as error:
            # Drawn again from the untouched session, so that a switched lock shows what holds.
            gr.Warning(str(error), title="That did not work")
            return page.planned(session, given)

    def travel(move: str) -> Any:
        def handler(given: Updates) -> Updates:
            with toasts():
                return page.settled(getattr(given[page.session], move)(), given)

        return handler

    def reset(given: Updates) -> Updates:
        with toasts():
            session = given[page.session]
            fresh = Recipe()
            names = (
                "removal",
                "swaps",
                "compensation",
                "damping",
                "healing",
                "ratio",
                "allocation",
                "ratios",
                "suggested",
                "keep",
                "prune",
                "round_channels",
                "round_heads",
                "uniform",
            )
            cleared = session.recipe.replace(**{name: getattr(fresh, name) for name in names})
            first = page.workbench.by_default(session, cleared)
            return page.settled(
                session.changed("", **{name: getattr(first, name) for name in (*names, "scorer")}), given
            )

    def opened(given: Updates) -> Session:
        session = given[page.session]
        recipe = Recipe.read(Path(given[step.open]))
        check_scorer(recipe.scorer)
        return adopted(session, page.workbench.dense(session).model.adopt(recipe))

    def prepare_recipe(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> None:
        """The scores an opened recipe goes by; `open_recipe` takes it over."""
        with page.job(request) as cancel:
            session = opened(given)
            page.workbench.score_by(session, session.recipe.scorer, progress=reporter(bar), cancel=cancel)

    def open_recipe(given: Updates) -> Updates:
        with toasts():
            return page.settled(opened(given), given)

    def suggested(session: Session, request: gr.Request, bar: gr.Progress) -> Updates:
        """What the model's loss says of the modules; a second handler puts the ratios into the plan."""
        with page.job(request) as cancel:
            loaded, report = page.workbench.dense(session), reporter(bar)
            parts = (loaded.model, loaded.stats, loaded.scores, session.recipe)
            found = sensitivity(*parts, progress=report, cancel=cancel)
            recipe = suggest(*parts, curves=found, progress=report, cancel=cancel)
            table = found.to_pandas()
            figure = sensitivity_curves(table)
            page.workbench.find(owner_of(request), SENSITIVITY, table, figure)
            return {step.curves: gr.Plot(figure, visible=True), step.suggested: recipe.ratios}

    def suggest_ratios(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        return suggested(given[page.session], request, bar)

    def adopt_suggestion(given: Updates) -> Updates:
        with toasts():
            return page.planned(given[page.session].changed("", ratios=given[step.suggested], suggested=True), given)

    def prepare_method(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        """The ratios of the chosen method, from scratch; `adopt_method` takes them over."""
        session, chosen = given[page.session], METHODS[given[step.method]]
        with toasts():
            changed = session.changed("", **chosen.settings, ratios={})
        with page.job(request) as cancel:
            page.workbench.score_by(changed, changed.recipe.scorer, progress=reporter(bar), cancel=cancel)
        return suggested(changed, request, bar) if chosen.suggests else {step.suggested: {}}

    def adopt_method(given: Updates) -> Updates:
        with toasts():
            values = {**METHODS[given[step.method]].settings, "ratios": given[step.suggested]}
            values["suggested"] = METHODS[given[step.method]].suggests
            return page.settled(given[page.session].changed("", **values), given)

    def show_method(given: Updates) -> Updates:
        """After a method that could not be taken over: the one that holds."""
        with toasts():
            session = given[page.session]
            return {step.method: method_of(session.recipe)}

    settings = page.settled_outputs
    step.ratio.input(
        change("ratio", lambda given: {"ratio": float(given[step.ratio])}),
        {*page.look, step.ratio},
        page.plan_outputs,
        **LIVE,
    )
    step.round_channels.input(
        change("", lambda given: {"round_channels": int(given[step.round_channels])}),
        {*page.look, step.round_channels},
        page.plan_outputs,
        **LIVE,
    )
    step.uniform.input(choose_uniform, {*page.look, step.uniform}, {*page.plan_outputs, step.uniform}, **LIVE)
    step.preset.input(choose_preset, {*page.look, step.preset}, page.plan_outputs, **LIVE)
    step.table.edit(edit, page.look, page.plan_outputs, **LIVE)
    event = step.suggest.click(
        suggest_ratios,
        {page.session},
        {step.curves, step.suggested},
        api_visibility="private",
        show_progress_on=step.prediction,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    # A second, quick handler, so that what was changed meanwhile is not undone by the long one.
    event.success(adopt_suggestion, {*page.look, step.suggested}, page.plan_outputs, **LIVE)
    event = step.method.input(
        prepare_method,
        {page.session, step.method},
        {step.curves, step.suggested},
        api_visibility="private",
        show_progress_on=step.prediction,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    event.success(adopt_method, {*page.look, step.suggested, step.method}, settings, **LIVE)
    event.failure(show_method, {page.session}, {step.method}, **LIVE)
    step.undo.click(travel("undo"), page.look, settings, **LIVE)
    step.redo.click(travel("redo"), page.look, settings, **LIVE)
    step.reset.click(reset, page.look, settings, **LIVE)
    event = step.open.upload(
        prepare_recipe,
        {page.session, step.open},
        None,
        api_visibility="private",
        show_progress_on=step.prediction,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    event.success(open_recipe, {*page.look, step.open}, settings, **LIVE)
    step.save.click(None, step.recipe, None, js=SAVE_RECIPE, api_visibility="private")
