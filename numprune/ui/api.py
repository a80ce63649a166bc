"""Named endpoints, so that gradio_client (and an agent, with gradio[mcp]) can do what the page does.

Each call names the model and holds everything that decides its result, so that calls need no order; a model that is
loaded already is used again. Models are kept for the client's session, like those of a browser tab.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from numprune.allocation.threshold import allocate
from numprune.errors import InputError
from numprune.models.dtypes import dtype_name
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.ui import engine
from numprune.ui.comparison import DENSE, measure_models, prompts_of
from numprune.ui.downloads import Downloads
from numprune.ui.given_numbers import number, whole
from numprune.ui.image_columns import exhibition
from numprune.ui.jobs import Jobs
from numprune.ui.model_form import texts_folder
from numprune.ui.pictures import data_uri, shown
from numprune.ui.records import Loaded
from numprune.ui.session import LoadRequest, Session
from numprune.ui.shared import ACCELERATOR, owner_of, toasts
from numprune.ui.tabs.export import default_name, packed
from numprune.ui.workbench import BY_MODEL, Workbench


def add(workbench: Workbench, jobs: Jobs, downloads: Downloads) -> None:
    """Add the endpoints to the page that is being built."""

    def opened(
        request: gr.Request,
        name: str,
        calibration: CalibrationRecipe,
        scorer: str,
        by_model: frozenset[str] = frozenset(),
    ) -> Loaded:
        wanted = LoadRequest(name, calibration=calibration, by_model=by_model)
        return workbench.load(wanted, owner_of(request), scorers=[scorer], own_texts=str(texts_folder()))

    def load(
        request: gr.Request,
        model: str = workbench.start.model,
        calibration: str = "self",
        samples: int | None = None,
        sequence_length: int | None = None,
        seed: int = 0,
        scorer: str = "newton",
    ) -> dict[str, Any]:
        """Open a language model, calibrate and score it; returns its facts and the recipe to prune it by.

        Args:
            model: an embedded name, a hub id or a folder of the server.
            calibration: "self" for the model's own samples, a dataset name or a file of the server.
            samples: sequences to calibrate on; None for as many as the device calibrates a model of this size on.
            sequence_length: tokens each, at most; None likewise.
            seed: which sequences are drawn.
            scorer: name of the scorer.
        """
        with toasts():
            given = {"samples": samples, "sequence_length": sequence_length}
            sizes = {name: whole(size, name) for name, size in given.items() if size is not None}
            source = CalibrationRecipe(calibration, seed=whole(seed, "seed"), **sizes)
            loaded = opened(request, model, source, scorer, BY_MODEL - set(sizes))
            dense = loaded.model
            return {
                "model": dense.name,
                "architecture": dense.architecture,
                "layers": dense.layers,
                "parameters": dense.parameters,
                "prunable_parameters": dense.prunable_parameters,
                "device": str(dense.device),
                "dtype": dtype_name(dense.dtype),
                "recipe": workbench.recipe(loaded).to_dict(),
            }

    def score(request: gr.Request, recipe: dict[str, Any]) -> dict[str, list[float]]:
        """The score of every unit by module ("0.attention", "0.mlp", ...), higher meaning more worth keeping.

        Args:
            recipe: as `load` returns it.
        """
        with toasts():
            wanted = Recipe.from_dict(recipe)
            loaded = opened(request, str(wanted.model), wanted.calibration, wanted.scorer)
            return {str(key): module.units.tolist() for key, module in loaded.scores.modules.items()}

    def prune(request: gr.Request, recipe: dict[str, Any], name: str = "") -> dict[str, Any]:
        """Prune by a recipe; returns the name the pruned model is kept under, its report and the units kept.

        Args:
            recipe: as `load` returns it, with "ratio" and whatever else changed.
            name: what to call the result.
        """
        with toasts():
            wanted = Recipe.from_dict(recipe)
            loaded = opened(request, str(wanted.model), wanted.calibration, wanted.scorer)
            plan = allocate(loaded.scores, wanted)
            session = Session(dense=loaded.request, recipe=wanted)
            owner = owner_of(request)
            job = jobs.begin(owner)
            try:
                kept = workbench.prune(session, owner, name=name, cancel=job.cancel)
            finally:
                jobs.end(owner, job)
            return {
                "name": kept,
                "kept": {str(key): len(units) for key, units in plan.keep.items()},
                "report": workbench.pruned(owner, kept).report.to_dict(),
            }

    def compare(
        request: gr.Request, recipe: dict[str, Any], name: str, prompt: str, max_new_tokens: int = 160, seed: int = 1
    ) -> dict[str, Any]:
        """The dense and a pruned model on the same prompt and seed, with perplexity and speed of both.

        Args:
            recipe: as `load` returns it; names the dense model.
            name: of the pruned model, as `prune` returns it.
            prompt: text to continue, one prompt a line.
            max_new_tokens: at most.
            seed: of the sampling.
        """
        with toasts():
            wanted = Recipe.from_dict(recipe)
            loaded = opened(request, str(wanted.model), wanted.calibration, wanted.scorer)
            if not loaded.model.adapter.reads_text:
                raise InputError(f"{wanted.model} draws images; use the endpoint draw.")
            lengths = whole(max_new_tokens, "max_new_tokens"), whole(seed, "seed")
            sampling = engine.Sampling(max_new_tokens=lengths[0], seed=lengths[1])
            prompts = prompts_of(prompt)
            models = {"dense": loaded.model, "pruned": workbench.pruned(owner_of(request), name)}
            return {
                figures.name: {
                    "texts": engine.generate(figures.model, prompts, **asdict(sampling)),
                    "parameters": figures.model.parameters,
                    **figures.perplexity.to_dict(),
                    "speed": figures.speed.to_dict(),
                }
                for figures in measure_models(models, "", None, None)
            }

    def draw(
        request: gr.Request, recipe: dict[str, Any], name: str, classes: list[int], seed: int = 0, guidance: float = 4.0
    ) -> dict[str, list[dict[str, Any]]]:
        """An image of each class by the dense and by a pruned model, from the same seeds.

        Args:
            recipe: as `load` returns it; names the dense model, which must be an image model.
            name: of the pruned model, as `prune` returns it.
            classes: class ids; at most 64.
            seed: of the first image; the next has the next seed.
            guidance: classifier-free guidance; 1 for none.

        Returns:
            By model, for each image its class, seed and picture (a data: address), and what the judge sees in it
            where the model came with one.
        """
        with toasts():
            wanted = Recipe.from_dict(recipe)
            loaded = opened(request, str(wanted.model), wanted.calibration, wanted.scorer)
            if loaded.model.adapter.reads_text:
                raise InputError(f"{wanted.model} writes text; use the endpoint compare.")
            models = {"dense": loaded.model, "pruned": workbench.pruned(owner_of(request), name)}
            drawing = {"cfg_scale": number(guidance, "guidance")}
            *_, last = exhibition(models, classes, 1, whole(seed, "seed"), drawing, None, None)
            table = last.table()
            images = {}
            for model, drawn in last.drawn.items():
                rows = table[table["model"] == model].drop(columns="model").to_dict("records")
                pictures = [data_uri(shown(image)) for image in drawn.images]
                images[model] = [{**row, "picture": each} for row, each in zip(rows, pictures, strict=True)]
            return images

    def export(
        request: gr.Request,
        recipe: dict[str, Any],
        name: str = "",
        format: str = "transformers",
        options: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """A model in a form that other engines open, as one file: the format's own, or its folder zipped.

        Args:
            recipe: as `load` returns it; names the dense model.
            name: of the pruned model, as `prune` returns it; empty for the dense one.
            format: a name in `numprune.export.FORMATS`.
            options: the format's own.

        Returns:
            Format, size on disk in bytes, notes, a snippet that loads what the file unpacks to, and the file.
        """
        with toasts():
            wanted = Recipe.from_dict(recipe)
            loaded = opened(request, str(wanted.model), wanted.calibration, wanted.scorer)
            owner = owner_of(request)
            model = workbench.pruned(owner, name) if name else loaded.model
            job = jobs.begin(owner)
            try:
                called = default_name(model, name or DENSE)
                file, done = packed(downloads, owner, model, called, format, options or {}, cancel=job.cancel)
            finally:
                jobs.end(owner, job)
            return {
                "format": done.format,
                "bytes": done.bytes,
                "notes": done.notes,
                "snippet": done.snippet,
                "file": gr.FileData(path=str(file), orig_name=file.name).model_dump(),
            }

    for endpoint in (load, score, prune, compare, draw, export):
        gr.api(endpoint, api_name=endpoint.__name__, **ACCELERATOR)
