"""What a run one layer at a time has finished, beside its output, so that it can go on."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from numprune.calibration.statistics import ModuleStats
from numprune.errors import InputError, NumpruneError
from numprune.files import MARKER, check_output, replace_folder, to_json
from numprune.linalg import all_finite
from numprune.models.depth import left_layers, own_keys, shortened
from numprune.models.model import FORMAT, Model
from numprune.models.placement import dtype_name
from numprune.models.written import tidy_config, write_tokenizer
from numprune.plan.keys import ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.plan.report import ModuleReport, PruningReport
from numprune.ranks import joined
from numprune.scoring.table import ModuleScores

if TYPE_CHECKING:
    from numprune.fitting.sequential import NetworkFit
    from numprune.layerwise.stage import Stage

SETTINGS, ROWS, LOCK, RESULT = "settings.json", "rows.safetensors", "lock", "result"


class State:
    """The folder OUT.partial: settings, calibration rows, moments, streams and scores by layer, and the result so far.

    Every file is written under another name and renamed, so a file that is there is whole. Of several processes the
    first one writes for all, but for the streams, of which each keeps its own; what it sees there counts.
    """

    def __init__(self, out: Path, folder: Path) -> None:
        self.out, self.folder, self.result, self.ranks = out, folder, folder / RESULT, joined()

    @classmethod
    @contextmanager
    def begin(cls, out: str | Path, settings: Mapping[str, Any]) -> Iterator[State]:
        """Start, or go on where an earlier run with the same settings ended.

        Raises:
            InputError: `out` is something else; another run writes it, or one with other settings was interrupted.
            NumpruneError: the disk refuses.
        """
        out = Path(out)
        check_output(out)
        folder = out.with_name(f"{out.name}.partial")
        state = cls(out, folder)
        try:
            (folder / RESULT).mkdir(parents=True, exist_ok=True)
            with (folder / LOCK).open("w") as lock:
                if state.ranks.first:
                    state._take(lock)
                    state._check(settings if state.ranks.alone else {**settings, "processes": state.ranks.count})
                state.ranks.wait()
                yield state
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise NumpruneError(
                f"Writing {folder} failed: {why}; free some space and run the same command again, which goes on from"
                " the last finished layer."
            ) from error

    def _take(self, lock: Any) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another run is writing {self.out}; wait for it, or choose another output folder."
            ) from error

    def _check(self, settings: Mapping[str, Any]) -> None:
        file = self.folder / SETTINGS
        if file.is_file():
            if json.loads(file.read_text()) != json.loads(to_json(settings)):
                raise InputError(
                    f"{self.folder} was left by a run with other settings; delete it, or choose another output folder."
                )
            return
        self._write(file, lambda path: path.write_text(to_json(settings)))

    def _there(self, *files: Path) -> bool:
        """Whether files that the first process writes are there."""
        return self.ranks.from_first(lambda: all(file.is_file() for file in files))

    def rows(self, draw: Callable[[list[str]], torch.Tensor], notes: list[str]) -> torch.Tensor:
        """The calibration's token ids, drawn once; notes on them are added."""
        file = self.folder / ROWS
        if not self._there(file):
            told: list[str] = []
            rows = draw(told)
            self._save({"rows": rows.contiguous()}, file, {"notes": json.dumps(told)})
        with safe_open(file, framework="pt") as opened:
            notes += json.loads(opened.metadata()["notes"])
            return opened.get_tensor("rows")

    def drawn_rows(self) -> torch.Tensor:
        """The calibration's token ids, (sequences, tokens), once they are drawn."""
        with safe_open(self.folder / ROWS, framework="pt") as opened:
            return opened.get_tensor("rows").long()

    # The first pass.

    def _moments(self, index: int) -> Path:
        return self.folder / f"moments-{index:05d}.safetensors"

    def _scores(self, index: int, scorer: str) -> Path:
        return self.folder / f"scores-{scorer}-{index:05d}.safetensors"

    def has_moments(self, index: int) -> bool:
        """Whether the moments of a layer are kept."""
        return self._there(self._moments(index))

    def keep_moments(self, index: int, moments: Mapping[ModuleKey, ModuleStats]) -> None:
        """Keep what reaches the last linears of a layer."""
        tensors: dict[str, torch.Tensor] = {}
        for key, stats in moments.items():
            tensors |= {f"{key}.gram": stats.gram.cpu(), f"{key}.mean": stats.mean.cpu()}
        self._save(tensors, self._moments(index), {str(key): str(stats.tokens) for key, stats in moments.items()})

    def moments(self, key: ModuleKey) -> ModuleStats:
        """The moments of a module; on the CPU the matrix is a view of the file."""
        with safe_open(self._moments(key.layer), framework="pt") as opened:
            tokens = int(opened.metadata()[str(key)])
            return ModuleStats(opened.get_tensor(f"{key}.gram"), opened.get_tensor(f"{key}.mean"), tokens)

    def drop_moments(self, index: int) -> None:
        """Let the moments of a layer go."""
        self.ranks.wait()
        if self.ranks.first:
            self._moments(index).unlink(missing_ok=True)

    def keep_scores(self, index: int, scorer: str, scores: Mapping[ModuleKey, ModuleScores]) -> None:
        """Keep the scores of a layer."""
        tensors, sizes = {}, {}
        for key, table in scores.items():
            for name in ("units", "channels"):
                tensors[f"{key}.{name}"] = torch.from_numpy(getattr(table, name).copy())
            sizes[str(key)] = json.dumps([table.cost, table.remainder])
        self._save(tensors, self._scores(index, scorer), sizes)

    def has_scores(self, index: int, scorer: str) -> bool:
        """Whether the scores of a layer are kept."""
        return self._there(self._scores(index, scorer))

    def scores(self, index: int, scorer: str) -> dict[ModuleKey, ModuleScores] | None:
        """The scores of a layer; None where it is not finished."""
        if not self.has_scores(index, scorer):
            return None
        found = {}
        with safe_open(self._scores(index, scorer), framework="pt") as opened:
            for name, sizes in (opened.metadata() or {}).items():
                # Copies: what the file holds goes away with it.
                arrays = [opened.get_tensor(f"{name}.{what}").numpy().copy() for what in ("units", "channels")]
                found[ModuleKey.parse(name)] = ModuleScores(*arrays, *json.loads(sizes))
        return found

    # The pass backwards.

    def _own(self, name: str) -> Path:
        """A file that every process has of its own sequences."""
        return self.folder / (f"{name}.safetensors" if self.ranks.alone else f"{name}.{self.ranks.rank}.safetensors")

    def _boundary(self, index: int) -> Path:
        return self._own(f"boundary-{index:05d}")

    def has_boundary(self, index: int) -> bool:
        """Whether the stream that enters a layer is kept; that of the layer behind the last is what leaves it."""
        return self._boundary(index).is_file()

    def keep_boundary(self, index: int, stream: torch.Tensor) -> None:
        """Keep the residual stream (sequences, tokens, hidden) that enters a layer."""
        self._save({"stream": stream.contiguous()}, self._boundary(index), {}, by_all=True)

    def boundary(self, index: int) -> torch.Tensor:
        """The residual stream that enters a layer, a view of the file."""
        with safe_open(self._boundary(index), framework="pt") as opened:
            return opened.get_tensor("stream")

    # The last pass.

    def keep_streams(self, index: int, fit: NetworkFit) -> None:
        """Keep how far a fit has come: both residual streams that enter a layer."""
        tensors = {f"dense.{batch}": stream for batch, stream in enumerate(fit.dense_stream)}
        if fit.touched:
            tensors |= {f"pruned.{batch}": stream for batch, stream in enumerate(fit.pruned_stream)}
        self._save(tensors, self._streams(index), {"touched": json.dumps(fit.touched)}, by_all=True)
        # Every process has come as far as the layer before.
        self.ranks.wait()
        self._streams(index - 1).unlink(missing_ok=True)

    def _streams(self, index: int) -> Path:
        return self._own(f"streams-{index:05d}")

    def take_streams(self, fit: NetworkFit) -> int:
        """Bring a fit to where an interrupted one had come; returns the layer that is next."""
        files = self.folder.glob(self._own("streams-*").name)
        latest = max((int(file.name.split(".")[0].rpartition("-")[2]) for file in files), default=0)
        index = min(self.ranks.exchange({self.ranks.rank: latest}).values())
        if not index:
            return 0
        with safe_open(self._streams(index), framework="pt") as opened:
            fit.touched = json.loads(opened.metadata()["touched"])
            batches = range(len(fit.dense_stream))
            fit.dense_stream = [opened.get_tensor(f"dense.{batch}") for batch in batches]
            kind = "pruned" if fit.touched else "dense"
            fit.pruned_stream = [opened.get_tensor(f"{kind}.{batch}") for batch in batches]
        return index

    def reports(self, index: int, left: Sequence[int]) -> list[ModuleReport] | None:
        """What was done to a layer that is finished; None where it is not.

        Args:
            left: the layers that are not left out, ascending.
        """
        file = self.folder / f"layer-{index:05d}.json"
        if not self._there(file, *([self.result / _shard_of(index, left)] if index in left else [])):
            return None
        return [ModuleReport(**each) for each in json.loads(file.read_text())]

    def write_layer(
        self,
        stage: Stage,
        index: int,
        left: Sequence[int],
        layer: nn.Module | None,
        dtype: torch.dtype,
        reports: Sequence[ModuleReport],
    ) -> None:
        """Write a finished layer into the result, in its place among those that are left, and then what was done to it;
        one that is left out is None."""
        if layer is not None:
            prefix = f"{layers_name(stage.model)}.{left.index(index)}."
            named = {f"{prefix}{name}": tensor for name, tensor in layer.state_dict().items()}
            self._save(_converted(named, dtype), self.result / _shard_of(index, left), {"format": "pt"})
        text = to_json([asdict(each) for each in reports])
        if self.ranks.first:
            self._write(self.folder / f"layer-{index:05d}.json", lambda path: path.write_text(text))

    def write_rest(self, stage: Stage, layers: int, dtype: torch.dtype, changed: Mapping[str, torch.Tensor]) -> None:
        """Write all tensors outside the layers of the result, some of them in the place of the model's own."""
        module, prefix = stage.model.module, f"{layers_name(stage.model)}."
        tied = set(getattr(module, "all_tied_weights_keys", None) or ())
        state = {
            name: tensor
            for name, tensor in module.state_dict().items()
            if not name.startswith(prefix) and name not in tied
        }
        self._save(_converted({**state, **changed}, dtype), self.result / _shard(0, layers), {"format": "pt"})

    def parameters(self, model: Model, layers: int) -> int:
        """Parameters of the result, which has so many layers."""
        buffers = {name for name, _ in model.module.named_buffers()}
        count = 0
        for index in range(layers + 1):
            with safe_open(self.result / _shard(index, layers), framework="pt") as opened:
                names = set(opened.keys()) - buffers
                count += sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
        return count

    def finish(self, model: Model, plan: PruningPlan, recipe: Recipe, report: PruningReport) -> None:
        """Complete the result and put it in its place."""
        self.ranks.wait()
        if self.ranks.first:
            self._finish(model, plan, recipe, report)
        self.remove()

    def _finish(self, model: Model, plan: PruningPlan, recipe: Recipe, report: PruningReport) -> None:
        folder, left = self.result, left_layers(model.layers, plan.gone)
        layers, own = len(left), own_keys(model.layers, plan.gone)
        names = [_shard(index, layers) for index in range(layers + 1)]
        places: dict[str, str] = {}
        for name in names:
            with safe_open(folder / name, framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), name)
        total = sum((folder / name).stat().st_size for name in names)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(to_json(index))
        shortened(model.config, left).save_pretrained(folder)
        if model.module.can_generate():
            model.module.generation_config.save_pretrained(folder)
        tidy_config(folder, model.written_dtype)
        write_tokenizer(model.tokenizer, model.tokenizer_files, folder)
        units = {str(key): len(plan.keep.get(before, ())) for key, before in own.items()}
        marker = {"format": FORMAT, "base": model.name, "units": units}
        if plan.gone:
            marker["layers"] = left
        (folder / MARKER).write_text(to_json(marker))
        (folder / "recipe.json").write_text(recipe.to_json())
        (folder / "report.json").write_text(report.to_json())
        replace_folder(folder, self.out)

    def remove(self) -> None:
        """Let all that was kept go."""
        self.ranks.wait()
        if self.ranks.first:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.ranks.wait()

    # Files.

    def _save(
        self, tensors: Mapping[str, torch.Tensor], file: Path, metadata: Mapping[str, str], *, by_all: bool = False
    ) -> None:
        """Write tensors; `by_all` is a file that every process has of its own."""
        if by_all or self.ranks.first:
            self._write(file, lambda path: save_file(dict(tensors), path, dict(metadata)))
        if not by_all:
            self.ranks.wait()

    @staticmethod
    def _write(file: Path, write: Callable[[Path], Any]) -> None:
        partial = file.with_name(f".{file.name}.writing")
        write(partial)
        partial.replace(file)


def layers_name(model: Model) -> str:
    """Where the decoder layers are in the module."""
    layers = model.adapter.layers(model.module)
    return next(name for name, part in model.module.named_modules() if part is layers)


def _shard(number: int, layers: int) -> str:
    return f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"


def _shard_of(index: int, left: Sequence[int]) -> str:
    """The file of a layer, by its number in the dense model; the first file holds what is no layer."""
    return _shard(left.index(index) + 1, len(left))


def _converted(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    made = {}
    for name, tensor in tensors.items():
        made[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
        if not all_finite(made[name]):
            raise NumpruneError(
                f"Tensor {name} has weights beyond {dtype_name(dtype)}; give --dtype float32 or bfloat16."
            )
    return made
