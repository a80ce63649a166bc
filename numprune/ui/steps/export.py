"""Step 6: write the dense or a pruned model in a form that other engines open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.export import FORMATS, Exported, check_export, export, formats_for
from numprune.models import Model
from numprune.ui import html
from numprune.ui.downloads import Downloads, zip_folder
from numprune.ui.page import ACCELERATOR, LIVE, Updates, file_name, owner_of, toasts
from numprune.ui.steps import hub
from numprune.ui.steps.compare import DENSE
from numprune.ui.workbench import Workbench, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

WAITING = "Choose a format; the size on disk and the code that loads the model appear here."
PURPOSE = "export"


@dataclass
class ExportStep:
    """Components of step 6; `options` holds the controls of every format, in a row that only it shows."""

    model: gr.Dropdown
    format: gr.Radio
    refused: gr.HTML
    rows: Mapping[str, gr.Row]
    options: Mapping[str, Mapping[str, gr.Dropdown]]
    name: gr.Textbox
    save: gr.Button
    write: gr.Button
    summary: gr.HTML
    snippet: gr.Code
    hub: hub.HubPart

    @property
    def inputs(self) -> set[Any]:
        controls = {control for controls in self.options.values() for control in controls.values()}
        return {self.model, self.format, self.name, *controls}

    @property
    def choices(self) -> set[Any]:
        return {self.model, self.refused}

    @property
    def outputs(self) -> set[Any]:
        return {*self.choices, self.format, self.summary, self.snippet, self.hub.address}

    def offer(self, dense: Model, variants: Mapping[str, Model]) -> Updates:
        """Choose among the dense and the tab's pruned models; the newest is chosen."""
        models = {DENSE: dense, **variants}
        chosen = next(reversed(models))
        return {
            self.model: gr.Dropdown(list(models), value=chosen),
            self.refused: refusals(models[chosen]),
        }

    def clear(self, dense: Model) -> Updates:
        """Empty, with a format that can carry the model."""
        return {
            **self.offer(dense, {}),
            self.format: first_format([name for name, reason in formats_for(dense).items() if reason is None]),
            self.summary: html.empty(WAITING),
            self.snippet: gr.Code(visible=False),
            self.hub.address: "",
        }

    def chosen(self, page: Page, given: Updates, owner: str) -> Model:
        """The model that is to be exported."""
        name = given[self.model]
        return page.workbench.dense(given[page.session]).model if name == DENSE else page.workbench.pruned(owner, name)

    def show(self, done: Exported, where: str) -> Updates:
        return {
            self.summary: facts(done, where),
            self.snippet: gr.Code(done.snippet, visible=True),
        }

    def settings(self, given: Updates) -> dict[str, str]:
        """The options of the chosen format."""
        return {name: given[control] for name, control in self.options.get(given[self.format], {}).items()}


def first_format(names: Sequence[str]) -> str | None:
    """The format that is offered first: the one most people open models with."""
    return "transformers" if "transformers" in names else next(iter(names), None)


def refusals(model: Model) -> str:
    """The formats that cannot carry a model, and why."""
    reasons = {name: reason for name, reason in formats_for(model).items() if reason is not None}
    return html.notes(f"Not as {name}: {model.name} {reason}." for name, reason in reasons.items())


def facts(done: Exported, where: str) -> str:
    """What an export left behind."""
    items = [(html.memory(done.bytes), f"on disk, {FORMATS[done.format].about}"), (done.path.name, where)]
    return html.cards(items) + html.notes(done.notes)


def default_name(model: Model, chosen: str) -> str:
    """What an export is called when nobody says."""
    return file_name(model.name if chosen == DENSE else f"{model.name} {chosen}")


def packed(
    downloads: Downloads,
    owner: str,
    model: Model,
    name: str,
    format: str,
    options: Mapping[str, str],
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> tuple[Path, Exported]:
    """One file to download, the format's own or its folder in a zip archive, and what is in it.

    A tab keeps one export; an earlier one makes room first. The snippet names the path the download unpacks to.

    Raises:
        InputError, NumpruneError, Cancelled: as `numprune.export.export` does; nothing is left.
    """
    check_export(model, format, options)
    suffix = FORMATS[format].suffix
    local = Path(file_name(name).removesuffix(suffix) + suffix)
    folder = downloads.folder(owner, PURPOSE)
    try:
        done = export(model, folder / local, format=format, options=options, progress=progress, cancel=cancel)
        file = done.path
        if not suffix:
            file = folder / f"{local}.zip"
            zip_folder(done.path, file, progress=progress, cancel=cancel)
        # A tab that closed meanwhile has set it; nobody would free the file.
        check_cancelled(cancel)
    except BaseException:
        downloads.drop(owner, folder)
        raise
    return file, replace(done, path=local, snippet=FORMATS[format].snippet(model, local))


def build(workbench: Workbench) -> ExportStep:
    folder = workbench.policy.exports
    with gr.Column(elem_classes="np-step", elem_id="np-export"):
        gr.Markdown("## 6 · Export\nWrite the model in a form that other engines open.")
        with gr.Row():
            model = gr.Dropdown(
                [DENSE], value=DENSE, label="Model to export", info="Dense, or a pruned one of step 4.", min_width=220
            )
            name = gr.Textbox(
                "",
                label="Export as",
                placeholder="tiny-stories-30-balanced",
                info="What the download, or what is written on this machine, is called.",
                min_width=220,
            )
        format = gr.Radio(
            [(f"{name}: {each.about}", name) for name, each in FORMATS.items()],
            value=first_format(list(FORMATS)),
            label="Format",
            info="What the files are, and what opens them.",
        )
        refused = gr.HTML("")
        rows, options = {}, {}
        for each, chosen in FORMATS.items():
            with gr.Row(visible=bool(chosen.options) and each == first_format(list(FORMATS))) as row:
                options[each] = {
                    option: gr.Dropdown(
                        list(values),
                        value=values[0],
                        label=option.replace("_", " ").capitalize(),
                        info=f"An option of {each}.",
                    )
                    for option, values in chosen.options.items()
                }
            rows[each] = row
        with gr.Row():
            save = gr.Button("Export and download", variant="secondary", elem_id="np-save-export", min_width=160)
            write = gr.Button(
                f"Export to {folder.name}/ on this machine" if folder else "Export to a folder",
                variant="secondary",
                visible=folder is not None,
                min_width=160,
            )
        summary = gr.HTML(html.empty(WAITING), elem_id="np-exported")
        snippet = gr.Code(
            label="Load it with",
            language="python",
            interactive=False,
            wrap_lines=True,
            lines=2,
            show_line_numbers=False,
            visible=False,
        )
        hub_part = hub.build(workbench)
    return ExportStep(model, format, refused, rows, options, name, save, write, summary, snippet, hub_part)


def wire(page: Page) -> None:
    step = page.export

    def choose(given: Updates, request: gr.Request) -> Updates:
        with toasts():
            return {step.refused: refusals(step.chosen(page, given, owner_of(request)))}

    def show_options(format: str) -> Updates:
        return {row: gr.Row(visible=name == format and bool(step.options[name])) for name, row in step.rows.items()}

    def download(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        with page.job(request) as cancel:
            owner = owner_of(request)
            model = step.chosen(page, given, owner)
            file, done = packed(
                page.downloads,
                owner,
                model,
                given[step.name].strip() or default_name(model, given[step.model]),
                given[step.format],
                step.settings(given),
                progress=reporter(bar),
                cancel=cancel,
            )
            return {**page.hand(file), **step.show(done, f"downloaded as {file.name}")}

    def write(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        with page.job(request) as cancel:
            model, format = step.chosen(page, given, owner_of(request)), given[step.format]
            options = step.settings(given)
            check_export(model, format, options)
            name = given[step.name].strip() or default_name(model, given[step.model])
            suffix = FORMATS[format].suffix
            target = page.workbench.policy.export_target(name.removesuffix(suffix) + suffix)
            done = export(model, target, format=format, options=options, progress=reporter(bar), cancel=cancel)
            return step.show(done, f"in {target.parent}")

    step.model.input(choose, {page.session, step.model}, {step.refused}, **LIVE)
    if step.rows:
        step.format.change(show_options, step.format, set(step.rows.values()), **LIVE)
    shown = {step.summary, step.snippet}
    for button, handler, outputs in ((step.save, download, {page.download, *shown}), (step.write, write, shown)):
        event = button.click(
            handler,
            {page.session, *step.inputs},
            outputs,
            api_visibility="private",
            show_progress_on=step.summary,
            **ACCELERATOR,
        )
        page.stoppable.append(event)
        if handler is download:
            page.save_with(event)
    hub.wire(page)
