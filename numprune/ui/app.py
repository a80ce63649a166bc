"""The dashboard: composes the steps and serves them."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from numprune.generation import Sampling
from numprune.ui.page import ACCELERATOR, Page, Updates, owner_of, toasts
from numprune.ui.steps import compare, inspect, prune, tune
from numprune.ui.steps import load as load_step
from numprune.ui.theme import CSS, THEME
from numprune.ui.workbench import Jobs, Session, Workbench, reporter

PURPOSE = (
    "# numprune\nSee which attention heads and MLP channels a language model can do without, remove them, and compare"
    " what is left with the original."
)
SCROLL_TO_COMPARE = """(...inputs) => {
  document.getElementById("np-compare")?.scrollIntoView({ behavior: "smooth" });
  return inputs;
}"""


def build(workbench: Workbench) -> gr.Blocks:
    """The page; it opens with the model the workbench starts with."""
    jobs = Jobs()
    with gr.Blocks(title="numprune", analytics_enabled=False) as blocks:
        with gr.Row(equal_height=True):
            with gr.Column(scale=4, min_width=320):
                gr.Markdown(PURPOSE, elem_classes="np-title")
            with gr.Column(scale=1, min_width=220):
                example = gr.Button("Run example", variant="primary", elem_id="np-example")
                stop = gr.Button("Stop", variant="stop", size="sm")
        page = Page(
            workbench=workbench,
            jobs=jobs,
            session=gr.State(Session()),
            example=example,
            stop=stop,
            load=load_step.build(),
            inspect=inspect.build(),
            tune=tune.build(),
            prune=prune.build(),
            compare=compare.build(),
        )
        for step in (load_step, inspect, tune, prune, compare):
            step.wire(page)
        _wire(page, blocks)
    return blocks


def _wire(page: Page, blocks: gr.Blocks) -> None:
    def first_visit(request: gr.Request) -> Updates:
        with toasts():
            start = page.workbench.start
            loaded = page.workbench.load(start, owner_of(request))
            return {page.load.model: start.model, **page.opened(page.workbench.open(loaded, Session()))}

    def run_example(
        prompt: str,
        tokens: int,
        temperature: float,
        seed: int,
        text: str,
        session: Session,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Updates]:
        """Prune by the recipe on the page, write with both models, then measure both."""
        with page.job(request) as cancel:
            done = page.workbench.prune(session, owner_of(request), progress=reporter(bar), cancel=cancel)
            dense, pruned = page.workbench.dense(done).model, page.workbench.pruned(done)
            yield {page.session: done, **page.prune.show(pruned), **page.compare.clear()}
            sampling = Sampling(max_new_tokens=int(tokens), temperature=float(temperature), seed=int(seed))
            for left, right in compare.write_both(dense, pruned, prompt, sampling, cancel):
                yield {page.compare.dense: left, page.compare.pruned: right}
            both = [compare.measure_one(model, text, reporter(bar), cancel) for model in (dense, pruned)]
            yield {page.compare.figures: compare.figures_table(*both)}

    def stop(request: gr.Request) -> None:
        if not page.jobs.stop(owner_of(request)):
            gr.Info("Nothing is running in this tab.", title="Stop")

    def leave(request: gr.Request) -> None:
        page.jobs.stop(owner_of(request))
        page.workbench.release(owner_of(request))

    blocks.load(
        first_visit,
        None,
        {page.load.model, *page.all_outputs},
        api_visibility="private",
        show_progress_on=page.load.facts,
        **ACCELERATOR,
    )
    step = page.compare
    page.example.click(
        run_example,
        [step.prompt, step.tokens, step.temperature, step.seed, step.own_text, page.session],
        {page.session, *page.prune.outputs, *step.outputs},
        api_visibility="private",
        show_progress_on=[page.prune.summary, step.figures],
        js=SCROLL_TO_COMPARE,
        **ACCELERATOR,
    )
    page.stop.click(stop, None, None, api_visibility="private", queue=False, show_progress="hidden")
    blocks.unload(leave)


def serve(workbench: Workbench, host: str, port: int) -> None:
    """Serve the dashboard until interrupted.

    Raises:
        OSError: when the port is taken.
    """
    build(workbench).queue(default_concurrency_limit=8).launch(
        server_name=host,
        server_port=port,
        share=False,
        theme=THEME,
        css=CSS,
        run_history=False,
        enable_monitoring=False,
        strict_cors=True,
        max_file_size="20mb",
        footer_links=[],
        ssr_mode=False,
    )
