"""The tabs of the page, a file each: plan, compare, speed, methods, export.

How a tab is built
------------------
A file `tabs/NAME.py` has one function::

    def build(shared: Shared) -> None

which `numprune.ui.app` calls once, inside an open `gr.Tab`. It makes the components, says what follows when something
on the page changes, and connects the events. A tab imports `numprune.ui.shared` and whatever stands below it; never
`numprune.ui.app`, never another tab. What two tabs use (`shared.making`: prompts, sampling, the text to measure on) is
a field of `Shared`, or a file beside it.

**Being drawn.** Parts register with ``shared.redraw(moment, outputs, show)``: at that moment `show(view)` returns new
values of `outputs`. The moments are:

- ``"opened"``: a model was opened in the tab; start empty, fit the controls to `view.loaded.model`.
- ``"planned"``: the recipe changed; runs on every move of the ratio, so it must be quick and its values small.
- ``"kept"``: the pruned models of the tab changed (`view.variants`).
- ``"measured"``: something was measured (`view.points`); the frontier draws its points anew.
- ``"compared"``: what models wrote, drew or measured is new; the columns are drawn anew.
- ``"selected"``: another unit was selected. ``"sensed"``: the model's own loss was asked about every module.

A handler that causes such a moment says so: its outputs are ``shared.outputs("kept", "measured") | {own}``, and it
returns ``shared.updates(view, "kept", "measured") | {own: value}``. Outputs are collected when the events are
connected, so events must be connected late: pass a function to ``shared.later(wire)``; it runs when all parts are
built.

**Quick handlers** answer a control at once: ``**QUICK``. They read the tab's session by ``shared.view(request)`` and
change it by ``shared.change(request, how)``, which is atomic: a session lives on the server, not in the page, so no
handler can put back an old one. Everything that changes the recipe from the browser goes through the one channel of
edits in `numprune.ui.edits`, so that edits arrive in order.

**Long handlers** compute with a model: ``shared.long(trigger, handler, inputs, outputs, show_on=component)`` connects
them. They run one at a time, can be stopped, and show in the header what they do and how long it will take when they
run inside ``with shared.job(request) as job:``; pass `job.progress` and `job.cancel` on to the engine. What goes wrong
inside becomes a toast and leaves the page as it was; an InputError is the way to refuse. A handler may be a generator.
Calibration statistics are not there before something needs them: ask
``shared.workbench.stats(view.session, progress=job.progress, cancel=job.cancel)``.

**Results.** ``shared.workbench.find(owner, title, table, *parts)`` keeps a result for the report and as a table of
numbers: `parts` are pieces of HTML and plotly figures, `table` a DataFrame. ``shared.workbench.point(owner, Point)``
keeps a measured loss for the frontier. ``shared.offer(...)`` and ``shared.hand(...)`` give a file to the browser, in a
handler whose event is passed to ``shared.save_with(event)``.

**Going elsewhere.** ``{shared.tabs: gr.Tabs(selected="plan")}`` opens another tab (`shared.tabs` among the outputs).

Every control has a label; help is a tooltip or nothing. Empty places say what to do: `html.empty(sentence)`. Colours
come from the theme's variables; small print is `html.notes`. Tables are `html.table`. Texts on the page meet WCAG AA.
"""
