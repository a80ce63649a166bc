"""The Fisher information at the outputs of all modules, one decoder layer at a time, from the last back to the first.

The gradient of the drawn predictions is taken at the end of the network and carried back through one layer after the
other, each run again on the residual stream that entered it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch

from numprune.errors import CancelEvent, check_cancelled
from numprune.layerwise.stage import Stage
from numprune.layerwise.state import State
from numprune.models.hooks import hooked
from numprune.models.prediction import predictions
from numprune.models.replay import LayerCalls
from numprune.plan.keys import ModuleKey
from numprune.ranks import joined
from numprune.scoring.fisher import DrawnSurprise, OutputInformation


def information_by_layer(
    stage: Stage,
    state: State,
    rows: torch.Tensor,
    own: torch.Tensor,
    seed: int,
    *,
    cancel: CancelEvent | None = None,
) -> Iterator[tuple[int, dict[ModuleKey, torch.Tensor]]]:
    """`numprune.scoring.fisher.fisher_information` of one decoder layer after the other, the last one first.

    Kept between layers is the gradient at a layer boundary, on the CPU.

    Args:
        state: holds the residual stream of `rows` at all layer boundaries, of the sequences that this process runs.
        rows: token ids (sequences, tokens) of all processes.
        own: indices of the sequences that this process runs, ascending.
        seed: of the drawn predictions.

    Raises:
        NumericalError: a gradient is not finite.
        Cancelled: `cancel` was set.
    """
    ranks, vocabulary = joined(), stage.model.module.get_output_embeddings().out_features
    batches = rows[own].split(stage.backward_batch(rows))
    surprise = DrawnSurprise(rows, own, vocabulary, seed)
    gradients = _at_the_end(stage, state, batches, surprise, cancel)
    calls = stage.calls(batches)
    calls.states.clear()
    for index in reversed(range(stage.layers)):
        information = _through(stage, calls, index, state.boundary(index), gradients)
        yield index, information.finish(surprise.tokens, ranks)
        # What was just yielded holds the layer's modules; see `numprune.layerwise.scores`.
        gc.collect()


def _at_the_end(
    stage: Stage,
    state: State,
    batches: Sequence[torch.Tensor],
    surprise: DrawnSurprise,
    cancel: CancelEvent | None,
) -> list[torch.Tensor]:
    """Gradients of the drawn predictions at what leaves the last layer, in batches."""
    ending, gradients = stage.ending(), []
    streams = state.boundary(stage.layers).split([len(batch) for batch in batches])
    for batch, stream in zip(batches, streams, strict=True):
        check_cancelled(cancel)
        batch, stream = batch.to(stage.device), stream.to(stage.device).requires_grad_(True)
        with torch.enable_grad():
            value = surprise(*predictions(ending.logits(batch, stream), batch))
            (gradient,) = torch.autograd.grad(value, [stream])
        gradients.append(gradient.cpu())
    return gradients


def _through(
    stage: Stage, calls: LayerCalls, index: int, entering: torch.Tensor, gradients: list[torch.Tensor]
) -> OutputInformation:
    """Carry gradients back through a decoder layer, in place; returns what they were behind its modules."""
    layer, information = stage.layer(index), OutputInformation()
    keys = {block.last: block.key for block in stage.adapter.layer_blocks(layer, index, calls.config)}
    outputs: dict[torch.nn.Module, torch.Tensor] = {}
    taken = {linear: lambda _, output, linear=linear: outputs.update({linear: output}) for linear in keys}
    for number, stream in enumerate(entering.split([len(each) for each in gradients])):
        stream = stream.to(stage.device).requires_grad_(True)
        with hooked(after=taken), torch.enable_grad():
            end = calls.run(layer, stream, index)
            found = torch.autograd.grad(end, [stream, *outputs.values()], gradients[number].to(stage.device))
        gradients[number] = found[0].cpu()
        for linear, gradient in zip(outputs, found[1:], strict=True):
            information.add(keys[linear], gradient)
        outputs.clear()
    return information
