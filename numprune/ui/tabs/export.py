"""Export: the dense or a pruned model in a form that other engines open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import gradio as gr

from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.export import FORMATS, Exported, check_export, export, formats_for
from numprune.ui import html
from numprune.ui.comparison import DENSE
from numprune.ui.downloads import Downloads, zip_folder
from numprune.ui.shared import QUICK, Shared, Updates, View, file_name, owner_of, toasts
from numprune.ui.tabs import hub

if TYPE_CHECKING:
    from torch import nn

    from numprune.models import Model


WAITING = "Choose a format and export; the size on disk and the code that loads the model appear here."
PURPOSE = "export"


@dataclass
class ExportTab:
    """Components of the tab; `options` holds the controls of every format, in a row that only it shows."""

    model: gr.Dropdown
    format: gr.Radio
    refused: gr.HTML
    rows: Mapping[str, gr.Row]
    options: Mapping[str, Mapping[str, gr.Dropdown]]
    name: gr.Textbox
    here: gr.Radio
    export: gr.Button
    summary: gr.HTML
    snippet: gr.Textbox

    @property
    def inputs(self) -> set[Any]:
        controls = {control for controls in self.options.values() for control in controls.values()}
        return {self.model, self.format, self.name, self.here, *controls}

    def offer(self, view: View) -> Updates:
        """Choose among the dense and the tab's pruned models; the newest is chosen."""
        variants = view.variants
        chosen = next(reversed(variants), DENSE)
        # What a dense model refuses is told once its weights are here; an export asks in any case.
        model = variants.get(chosen) or (view.loaded.model if view.loaded.weights.ready else None)
        return {
            self.model: gr.Dropdown([DENSE, *variants], value=chosen),
            self.refused: "" if model is None else refusals(model),
        }

    def clear(self, view: View) -> Updates:
        """Empty, with a format that can carry the model."""
        known = reasons(view.loaded.model) if view.loaded.weights.ready else dict.fromkeys(FORMATS)
        possible = [name for name, reason in known.items() if reason is None]
        return {
            **self.offer(view),
            self.format: first_format(possible),
            self.summary: html.empty(WAITING),
            self.snippet: gr.Textbox(visible=False),
        }

    def show(self, done: Exported, where: str) -> Updates:
        return {self.summary: facts(done, where), self.snippet: gr.Textbox(done.snippet, visible=True)}

    def settings(self, given: Updates) -> dict[str, str]:
        """The options of the chosen format."""
        return {name: given[control] for name, control in self.options.get(given[self.format], {}).items()}


def model_called(view: View, name: str) -> Model:
    """The model that is to be exported."""
    return view.loaded.model if name == DENSE else view.workbench.pruned(view.owner, name)


def first_format(names: Sequence[str]) -> str | None:
    """The format that is offered first: the one most people open models with."""
    return "transformers" if "transformers" in names else next(iter(names), None)


def refusals(model: Model) -> str:
    """The formats that cannot carry a model, and why."""
    refused = {name: reason for name, reason in reasons(model).items() if reason is not None}
    return html.notes(f"Not as {name}: {model.name} {reason}." for name, reason in refused.items())


def reasons(model: Model) -> dict[str, str | None]:
    """`formats_for`, found out once for a model of the page, which never changes."""
    if model.module not in _reasons:
        _reasons[model.module] = formats_for(model)
    return _reasons[model.module]


_reasons: WeakKeyDictionary[nn.Module, dict[str, str | None]] = WeakKeyDictionary()


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


DOWNLOAD, HERE = "download", "here"


def build(shared: Shared) -> ExportTab:
    folder = shared.workbench.policy.exports
    with gr.Row():
        model = gr.Dropdown([DENSE], value=DENSE, label="Model to export", min_width=180)
        name = gr.Textbox("", label="Export as", placeholder="tiny-stories-30-balanced", min_width=180)
        here = gr.Radio(
            [("download", DOWNLOAD), *([(f"{folder.name}/ on this machine", HERE)] if folder else [])],
            value=DOWNLOAD,
            label="To",
            visible=folder is not None,
            min_width=180,
        )
    format = gr.Radio(
        [(f"{name}: {each.about}", name) for name, each in FORMATS.items()],
        value=first_format(list(FORMATS)),
        label="Format",
    )
    refused = gr.HTML("")
    rows, options = {}, {}
    for each, chosen in FORMATS.items():
        with gr.Row(visible=bool(chosen.options) and each == first_format(list(FORMATS))) as row:
            options[each] = {
                option: gr.Dropdown(list(values), value=values[0], label=option.replace("_", " ").capitalize())
                for option, values in chosen.options.items()
            }
        rows[each] = row
    with gr.Row():
        button = gr.Button("Export", variant="primary", size="md", elem_id="np-save-export", min_width=160, scale=0)
    summary = gr.HTML(html.empty(WAITING), elem_id="np-exported")
    snippet = gr.Textbox(
        label="Load it with",
        interactive=False,
        buttons=["copy"],
        lines=2,
        visible=False,
        elem_id="np-snippet",
        elem_classes="np-mono",
    )
    tab = ExportTab(model, format, refused, rows, options, name, here, button, summary, snippet)
    shared.redraw("opened", {model, refused, format, summary, snippet}, tab.clear)
    shared.redraw("kept", {model, refused}, tab.offer)
    hub.build(
        shared,
        lambda view, given: (model_called(view, given[tab.model]), given[tab.format], tab.settings(given)),
        tab.inputs,
    )
    shared.later(lambda: _wire(shared, tab))
    return tab


def _wire(shared: Shared, tab: ExportTab) -> None:
    def choose(name: str, request: gr.Request) -> Updates:
        with toasts():
            return {tab.refused: refusals(model_called(shared.view(request), name))}

    def show_options(format: str) -> Updates:
        return {row: gr.Row(visible=name == format and bool(tab.options[name])) for name, row in tab.rows.items()}

    def export_model(given: Updates, request: gr.Request) -> Updates:
        with shared.job(request) as job:
            owner = owner_of(request)
            model = model_called(shared.view(request), given[tab.model])
            name = given[tab.name].strip() or default_name(model, given[tab.model])
            format, options = given[tab.format], tab.settings(given)
            steps = {"progress": job.progress, "cancel": job.cancel}
            if given[tab.here] == DOWNLOAD:
                file, done = packed(shared.downloads, owner, model, name, format, options, **steps)
                return {**shared.hand(file), **tab.show(done, f"downloaded as {file.name}")}
            check_export(model, format, options)
            suffix = FORMATS[format].suffix
            target = shared.workbench.policy.export_target(name.removesuffix(suffix) + suffix)
            done = export(model, target, format=format, options=options, **steps)
            return {shared.download: gr.DownloadButton(value=None), **tab.show(done, f"in {target.parent}")}

    tab.model.input(choose, tab.model, {tab.refused}, **QUICK)
    if tab.rows:
        tab.format.change(show_options, tab.format, set(tab.rows.values()), **QUICK)
    outputs = {shared.download, tab.summary, tab.snippet}
    event = shared.long(tab.export.click, export_model, tab.inputs, outputs, show_on=tab.summary)
    shared.save_with(event)
