"""The dashboard: composes the steps and serves them."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from numprune.ui import api
from numprune.ui.page import ACCELERATOR, Page, Updates, owner_of, toasts
from numprune.ui.serving import Serving
from numprune.ui.session import Session
from numprune.ui.steps import compare, default, export, inspect, prune, report, tune
from numprune.ui.steps import load as load_step
from numprune.ui.theme import CSS, THEME
from numprune.ui.workbench import Jobs, Workbench, reporter

PURPOSE = (
    "# numprune\nSee which attention heads and MLP channels a language or image model can do without, remove them, and"
    " compare what is left with the original."
)
SCROLL_TO_COMPARE = """(...inputs) => {
  document.getElementById("np-compare")?.scrollIntoView({ behavior: "smooth" });
  return inputs;
}"""


def build(workbench: Workbench) -> gr.Blocks:
    """The page; it opens with the model the workbench starts with."""
    return compose(workbench)[0]


def compose(workbench: Workbench) -> tuple[gr.Blocks, Page]:
    """The page and its parts."""
    jobs = Jobs()
    # Uploads and files made for download are swept after a day.
    with gr.Blocks(title="numprune", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        with gr.Row(equal_height=True):
            with gr.Column(scale=4, min_width=320):
                gr.Markdown(PURPOSE, elem_classes="np-title")
            with gr.Column(scale=1, min_width=220):
                example = gr.Button("Run example", variant="primary", elem_id="np-example")
                stop = gr.Button("Stop", variant="stop", size="sm", elem_id="np-stop")
        page = Page(
            workbench=workbench,
            jobs=jobs,
            session=gr.State(Session()),
            example=example,
            stop=stop,
            download=gr.DownloadButton("Download", elem_id="np-download"),
            load=load_step.build(workbench),
            inspect=inspect.build(),
            tune=tune.build(),
            prune=prune.build(),
            compare=compare.build(),
            export=export.build(workbench),
            report=report.build(),
        )
        for step in (load_step, inspect, tune, prune, compare, export, report):
            step.wire(page)
        _wire(page, blocks)
        api.add(workbench, jobs, page.downloads)
    return blocks, page


def _wire(page: Page, blocks: gr.Blocks) -> None:
    def first_visit(given: Updates, request: gr.Request) -> Updates:
        with toasts():
            start = page.workbench.start
            loaded = page.workbench.load(start, owner_of(request))
            return {page.load.model: start.model, **page.opened(page.workbench.open(loaded, Session()), given)}

    def run_example(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Updates]:
        """Prune by the recipe on the page, write or draw with both models, then measure both."""
        owner, session = owner_of(request), given[page.session]
        with page.job(request) as cancel:
            name = page.workbench.prune(session, owner, progress=reporter(bar), cancel=cancel)
            variants = page.workbench.variants(owner)
            dense = page.workbench.dense(session).model
            models = {compare.DENSE: dense, name: variants[name]}
            yield page.kept(session, owner)
            yield from compare.made(page, models, given, owner, reporter(bar), cancel)
            yield compare.measured(page, models, given, owner, reporter(bar), cancel)

    def stop(request: gr.Request) -> None:
        page.jobs.stop(owner_of(request))
        gr.Info("Whatever ran or waited in this tab ends; the page stays as it was before.", title="Stopped")

    def leave(request: gr.Request) -> None:
        page.jobs.stop(owner_of(request))
        page.workbench.release(owner_of(request))
        page.downloads.free(owner_of(request))

    event = blocks.load(
        first_visit,
        page.look,
        {page.load.model, *page.all_outputs},
        api_visibility="private",
        show_progress_on=page.load.facts,
        **ACCELERATOR,
    )
    page.openings.append(event)
    default.wire(page)
    example = page.example.click(
        run_example,
        {page.session, page.compare.own_text, *page.compare.sampling, *page.compare.images.settings},
        {*page.kept_outputs, *page.compare.outputs},
        api_visibility="private",
        show_progress_on=[page.prune.summary, page.compare.figures],
        js=SCROLL_TO_COMPARE,
        **ACCELERATOR,
    )
    # The stop event ends what runs; `cancels` also takes what waits out of the queue.
    page.stop.click(
        stop,
        None,
        None,
        cancels=[example, *page.stoppable],
        api_visibility="private",
        show_progress="hidden",
        concurrency_limit=None,
    )
    blocks.unload(leave)


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
