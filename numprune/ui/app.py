"""The dashboard: one screen of a header, a rail and tabs; composes them and serves the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from numprune.ui import api, carry_out, channel, header, making, model_form, rail, share, side
from numprune.ui.downloads import Downloads
from numprune.ui.jobs import Jobs
from numprune.ui.opening import first_visit
from numprune.ui.serving import Serving
from numprune.ui.shared import QUICK, Shared, owner_of
from numprune.ui.tabs import compare, export, methods, plan, speed
from numprune.ui.theme import CSS, THEME
from numprune.ui.workbench import Workbench

TABS = (
    ("compare", "Compare", compare),
    ("speed", "Speed", speed),
    ("methods", "Methods", methods),
    ("export", "Export", export),
)


def build(workbench: Workbench) -> gr.Blocks:
    """The page; it opens with the model the workbench starts with."""
    return compose(workbench)[0]


def compose(workbench: Workbench) -> tuple[gr.Blocks, Shared]:
    """The page, and what its parts share."""
    jobs = Jobs()
    # Uploads and files made for download are swept after a day.
    with gr.Blocks(title="numprune", fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        road = channel.build(workbench)
        top = header.build(workbench, jobs)
        kept = gr.BrowserState(None, storage_key="numprune-recipe", secret="numprune")
        shared = Shared(
            workbench=workbench,
            jobs=jobs,
            downloads=Downloads(),
            download=gr.DownloadButton("Download", elem_id="np-download"),
            tabs=gr.Tabs(elem_id="np-views", selected="plan", render=False),
            making=making.build(),
        )
        model_form.build(shared)
        panel = share.build()
        side.build_close_up(shared)
        with gr.Row(elem_id="np-body"):
            with gr.Column(elem_id="np-rail", scale=0):
                controls = rail.build(shared)
            with gr.Column(elem_id="np-main"):
                shared.tabs.render()
                with shared.tabs:
                    with gr.Tab("Plan", id="plan") as first:
                        planned = plan.build(shared)
                    opened = {"plan": first}
                    for name, title, module in TABS:
                        with gr.Tab(title, id=name) as opened[name]:
                            module.build(shared)
        header.wire(shared, top, blocks)
        channel.wire(shared, road, controls.controls)
        carry_out.wire(shared, controls, planned)
        shared.later(lambda: share.wire(shared, panel, top.share))
        shared.later(lambda: first_visit(shared, blocks, kept))
        shared.redraw("planned", {kept}, lambda view: {kept: view.session.recipe.to_json()})
        shared.later(lambda: _follow_tabs(shared, opened))
        shared.wire()

        def leave(request: gr.Request) -> None:
            shared.left(owner_of(request))

        blocks.unload(leave)
        shared.leave(lambda owner: _forget_shown(blocks, owner))
        api.add(workbench, jobs, shared.downloads)
    return blocks, shared


def _forget_shown(blocks: gr.Blocks, owner: str) -> None:
    """Free what every part of a closed tab's page last showed: Gradio keeps it of the last ten thousand tabs."""
    holder = blocks.state_holder
    with holder.lock:
        holder.session_data.pop(owner, None)
        holder.time_last_used.pop(owner, None)


def _follow_tabs(shared: Shared, tabs: dict[str, gr.Tab]) -> None:
    """Remember which tab is open, so that a result appears where it was asked for."""

    def follow(name: str) -> Any:
        def opened(request: gr.Request) -> None:
            shared.workbench.look_by(owner_of(request), tab=name)

        return opened

    for name, tab in tabs.items():
        tab.select(follow(name), None, None, **QUICK)


def serve(workbench: Workbench, serving: Serving) -> None:
    """Serve the dashboard until interrupted.

    Raises:
        OSError: when the port is taken.
    """
    build(workbench).queue(default_concurrency_limit=8).launch(
        server_name=serving.host,
        server_port=serving.port,
        auth=serving.auth,
        root_path=serving.root_path or None,
        share=serving.share,
        theme=THEME,
        css=CSS,
        run_history=False,
        enable_monitoring=False,
        strict_cors=True,
        max_file_size="20mb",
        footer_links=["api"],
        ssr_mode=False,
    )
