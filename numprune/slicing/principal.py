"""SliceGPT: fewer directions of the residual stream instead of fewer heads and channels (Ashkboos et al., ICLR 2024).

Behind the embedding, every attention and every MLP the residual stream is turned into the basis of its principal
components and cut to the first ones. An RMS norm without weights commutes with a rotation, so before the cut the
network computes what it did.
"""

from __future__ import annotations

import time
from bisect import bisect_left

import torch

from numprune.calibration.statistics import CalibrationStats, GramAccumulator
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.models.batches import FIT_SEQUENCES
from numprune.models.model import Model, twin
from numprune.models.placement import dtype_name
from numprune.models.replay import LayerCalls
from numprune.plan.recipe import Recipe
from numprune.plan.report import PruningReport
from numprune.slicing.stream import check_sliceable, narrow_residual, narrowed_parameters


def slicegpt(
    model: Model,
    stats: CalibrationStats,
    ratio: float,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Model:
    """A copy of `model` by SliceGPT at this ratio; see `slice_by_recipe`."""
    recipe = Recipe(calibration=stats.source, removal="slicegpt", ratio=ratio, compensation="none")
    return slice_by_recipe(model, stats, recipe, progress=progress, cancel=cancel)


def slice_by_recipe(
    model: Model,
    stats: CalibrationStats,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Model:
    """A copy of `model` with a narrower residual stream; `model` itself is not touched.

    All streams get one width, the multiple of `recipe.round_channels` whose model is nearest in parameters to what
    pruning units leaves: all parameters less `recipe.ratio` of the prunable ones. Embedding and output layer shrink
    with the stream and count; so do the shortcut matrices and, where the embedding was tied, the output layer of its
    own.

    Args:
        stats: from `calibrate`, for this model; its tokens are what the principal components are of.
        recipe: removal "slicegpt"; ratio, calibration and round_channels are used.

    Returns:
        A model on the same device in the same dtype, with `.recipe` and `.report`; the report lists no modules.

    Raises:
        UnsupportedArchitecture: the layers are not Llama's, before any work.
        InputError: the model is pruned already, or the statistics are another model's or hold no token ids.
        NumericalError: the residual stream is not finite.
        Cancelled: `cancel` was set.
    """
    began = time.monotonic()
    check_sliceable(model.adapter, model.config, model.name)
    if model.recipe is not None or not all(model.units().values()):
        raise InputError(f"{model.name} is pruned already; SliceGPT starts from a dense model.")
    fingerprint = model.check_own(statistics=stats.fingerprint)
    rows = stats.token_rows("run through the model")
    width = width_for(model, recipe.ratio, multiple=recipe.round_channels)
    bases = principal_bases(model, rows, width, progress=progress, cancel=cancel)
    sliced = model.around(narrow_residual(model.module, model.adapter, [basis[:, :width] for basis in bases]))
    sliced.check_finite("calibrate on more text, or load the model in float32")
    sliced.recipe = recipe.replace(model=model.name, fingerprint=fingerprint)
    sliced.report = PruningReport(
        modules=[],
        parameters_before=model.parameters,
        parameters_after=sliced.parameters,
        bytes_before=model.stored_bytes,
        bytes_after=sliced.stored_bytes,
        ratio_asked=recipe.ratio,
        ratio_reached=(model.parameters - sliced.parameters) / model.prunable_parameters,
        compensation="none",
        damping=recipe.damping,
        device=str(model.device),
        dtype=dtype_name(model.written_dtype),
        seconds=time.monotonic() - began,
        notes=[*stats.notes, _note(model, width)],
    )
    return sliced


def width_for(model: Model, ratio: float, *, multiple: int = 1) -> int:
    """The width of the residual stream whose parameters are nearest to all less `ratio` of the prunable ones."""
    dense = model.module.get_input_embeddings().weight.shape[1]
    target = model.parameters - ratio * model.prunable_parameters
    widths = range(min(multiple, dense), dense + 1, multiple)

    def count(width: int) -> int:
        return narrowed_parameters(model.module, model.adapter, width)

    above = bisect_left(widths, target, key=count)
    return min(widths[max(above - 1, 0) : above + 1], key=lambda width: abs(count(width) - target))


def _note(model: Model, width: int) -> str:
    added = 2 * model.layers * width**2
    dense = model.module.get_input_embeddings().weight.shape[1]
    tied = " and an output layer of its own" if model.config.tie_word_embeddings else ""
    return (
        f"SliceGPT: the residual stream is {width} wide instead of {dense}; heads and channels stay, and {added:,}"
        f" parameters of shortcut matrices{tied} came on top."
    )


@torch.no_grad()
def principal_bases(
    model: Model,
    rows: torch.Tensor,
    width: int,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> list[torch.Tensor]:
    """Principal components of the residual stream behind the embedding, every attention and every MLP.

    One basis after the other, each of the stream that the bases before it let only `width` components of through: with
    X the stream (tokens, hidden), the eigenvectors of XᵀX, the mean not taken off, and then X <- X Q_w Q_wᵀ.

    Args:
        rows: token ids (sequences, tokens).
        width: components that pass, at most hidden.

    Returns:
        1 + 2 per layer, (hidden, hidden) float64 each, columns from the largest eigenvalue down.
    """
    # Hooks are put on the twin; the model itself may run on other threads meanwhile.
    module = twin(model.module)
    calls = LayerCalls.of(module, model.adapter, list(rows.long().to(model.device).split(FIT_SEQUENCES)))
    layers = model.adapter.layers(module)
    bases: list[torch.Tensor] = []

    def cut(states: list[torch.Tensor], where: str) -> list[torch.Tensor]:
        check_cancelled(cancel)
        bases.append(principal_components(states, where))
        passing = bases[-1][:, :width].to(model.device, model.dtype)
        return [(state @ passing) @ passing.T for state in states]

    states = cut(calls.states, "the embedding")
    for index, layer in enumerate(layers):
        arguments = [calls.arguments[len(state), index][1] for state in states]
        attended = [
            state + layer.self_attn(hidden_states=layer.input_layernorm(state), **kwargs)[0]
            for state, kwargs in zip(states, arguments, strict=True)
        ]
        states = cut(attended, f"{index}.attention")
        states = cut([state + layer.mlp(layer.post_attention_layernorm(state)) for state in states], f"{index}.mlp")
        if progress is not None:
            progress(index + 1, len(layers), "turning the residual stream")
    return bases


def principal_components(states: list[torch.Tensor], where: str) -> torch.Tensor:
    """Eigenvectors of XᵀX of all states (..., hidden) together, (hidden, hidden) float64, the largest first.

    Raises:
        NumericalError: a state is not finite; `where` tells which.
    """
    device = states[0].device if states[0].device.type != "mps" else torch.device("cpu")
    moments = GramAccumulator(states[0].shape[-1], device)
    for state in states:
        if not moments.add(state.reshape(-1, state.shape[-1])):
            raise NumericalError(
                f"The residual stream behind {where} is not finite; load the model in float32 or bfloat16."
            )
    return torch.linalg.eigh(moments.finish().gram).eigenvectors.flip(1)
