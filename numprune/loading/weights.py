"""The files that hold a model's weights, and what can be told from their tensors before one of them is read."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

from numprune.errors import LoadError

SAFETENSORS, PICKLES = "model.safetensors", "pytorch_model.bin"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BESIDE = ("self-", "scores", "captions", "adapter_model", "judge")
"""What files of tensors beside a model begin with that are no weights of it."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: its data type as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightFiles:
    """What holds the weights of a folder.

    Attributes:
        files: the files, in order.
        tensors: every tensor in them by name; None for pickles, which say so only when they are read.
        notes: what lies beside them and was not read, in sentences.
    """

    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo] | None
    notes: list[str] = field(default_factory=list)

    def dtype(self) -> torch.dtype | None:
        """The data type that most of the weights have; None where that cannot be told."""
        weights = Counter[str]()
        for tensor in (self.tensors or {}).values():
            weights[tensor.dtype] += math.prod(tensor.shape)
        common = max((name for name in weights if name in _DTYPES), key=weights.__getitem__, default=None)
        return None if common is None else _DTYPES[common]


def weight_files(folder: Path, name: str) -> WeightFiles:
    """The files that hold the weights: those an index names, or the one there is without an index.

    Raises:
        LoadError: there are none, or the index names files that are not there.
        SafetensorError: a file is damaged.
    """
    chosen, notes = chosen_files(folder, name)
    beside = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(_BESIDE)]
    strays = [file.name for file in beside if file not in chosen]
    if strays and chosen[0].suffix == ".safetensors":
        told = ", ".join(strays[:3]) + (", ..." if len(strays) > 3 else "")
        main = chosen[0].name if len(chosen) == 1 else f"the {len(chosen)} files of the index"
        notes.append(f"{told} in {name} was not read; {main} is the model.")
    pickled = chosen[0].suffix == ".bin"
    return WeightFiles(tuple(chosen), None if pickled else _tensors(chosen), notes)


def chosen_files(folder: Path, name: str) -> tuple[list[Path], list[str]]:
    """The files of weights, unread, and notes; see `weight_files`."""
    notes = []
    for single in (SAFETENSORS, PICKLES):
        whole = folder / single
        index = folder / f"{single}.index.json"
        if index.is_file():
            shards = _shards(index, name)
            missing = [shard.name for shard in shards if not shard.is_file()]
            if not missing:
                return shards, notes
            if not whole.is_file():
                raise LoadError(
                    f"{missing[0]}, which {index.name} of {name} names, is not there ({len(missing)} of"
                    f" {len(shards)} files are missing); download the checkpoint again."
                )
            notes.append(f"{index.name} of {name} names files that are not there; {single} was read instead.")
        if whole.is_file():
            return [whole], notes
    suffixes = (".safetensors", ".bin", ".gguf", ".pth")
    others = sorted(file.name for file in folder.iterdir() if file.suffix in suffixes)
    others = [other for other in others if not other.startswith((*_BESIDE, "training_args", "optimizer", "scheduler"))]
    if others:
        raise LoadError(
            f"Folder {name} has no weights under the names transformers gives them ({SAFETENSORS}, or an index and its"
            f" files); it has {', '.join(others[:3])}: give that file if it is a GGUF, else rename or convert it."
        )
    raise LoadError(f"Folder {name} has no weights (*.safetensors); copy them there or choose another folder.")


def _shards(index: Path, name: str) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names or not all(isinstance(each, str) for each in names):
            raise ValueError("it names no files")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{index.name} of {name} is damaged ({error}); download it again.") from error
    outside = [each for each in sorted(names) if Path(each).name != each]
    if outside:
        raise LoadError(f"{index.name} of {name} names {outside[0]}, outside the folder, which is refused.")
    return [index.parent / each for each in sorted(names)]


def _tensors(files: list[Path]) -> dict[str, TensorInfo]:
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                part = opened.get_slice(name)
                found[name] = TensorInfo(part.get_dtype(), tuple(part.get_shape()))
    return found


def read_tensors(files: tuple[Path, ...]) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """The tensors of safetensors files with their file and name, one after the other."""
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                yield file, name, opened.get_tensor(name)


@contextmanager
def only(folder: Path, weights: WeightFiles) -> Iterator[Path]:
    """A folder in which transformers finds these weights and no others: `folder` itself where it would.

    transformers prefers a whole file to an index, and puts an adapter it finds on top.
    """
    names = {file.name for file in weights.files}
    sharded = names != {SAFETENSORS} and names != {PICKLES}
    whole = SAFETENSORS if weights.files[0].suffix == ".safetensors" else PICKLES
    mistaken = sharded and (folder / whole).is_file()
    mistaken |= (folder / "adapter_config.json").is_file()
    if not mistaken:
        yield folder
        return
    with tempfile.TemporaryDirectory() as staged:
        skipped = ("adapter_config.json", *(() if not sharded else (whole,)))
        for file in folder.iterdir():
            if file.name not in skipped and (file.suffix not in (".safetensors", ".bin") or file.name in names):
                (Path(staged) / file.name).symlink_to(file.resolve())
        yield Path(staged)


_MARKS = {
    "SCB": "bitsandbytes",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "W_q": "HQQ",
    "weight_packed": "compressed-tensors",
    "weight_scale": "compressed-tensors",
    "weight_scale_inv": "FP8",
}
"""How the names of tensors end that only one way of quantising makes."""


def quantisation(tensors: Mapping[str, TensorInfo]) -> str | None:
    """What quantised some of the tensors, told by their names and shapes; None when they are plain numbers."""
    for name, tensor in tensors.items():
        base, _, last = name.rpartition(".")
        if last == "qweight":
            scales = tensors.get(f"{base}.scales")
            # AWQ packs along the outputs, GPTQ along the inputs.
            packed = scales is not None and len(tensor.shape) == 2 and tensor.shape[-1] != scales.shape[-1]
            return "AWQ" if packed and f"{base}.g_idx" not in tensors else "GPTQ"
        if last == "scales" and f"{base}.biases" in tensors:
            return "MLX"
        if last in _MARKS:
            return _MARKS[last]
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype not in _DTYPES:
            return "FP8" if tensor.dtype.startswith("F8") else f"{tensor.dtype} weights"
    return None


def adapter_leftover(tensors: Mapping[str, TensorInfo]) -> str | None:
    """The first tensor of an adapter (LoRA) that was saved among the weights instead of merged into them."""
    return next((name for name in tensors if ".lora_" in name or ".base_layer." in name), None)
