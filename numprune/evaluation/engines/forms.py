"""The engines there are, whether one is at hand, and the form it takes a model in."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from numprune.errors import CancelEvent, Cancelled, InputError, NumpruneError, Progress, pip_install
from numprune.evaluation.engines.processes import Refused
from numprune.export.formats import export

if TYPE_CHECKING:
    from numprune.models.model import Model


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        about: it, in a few words.
        needs: packages of this environment, by the names they are imported under; None for one that has its own.
        install: the command that installs those.
        format: of `numprune.FORMATS`, that it takes; None for what numprune opens.
    """

    about: str
    needs: tuple[str, ...] | None
    install: str
    format: str | None


ENGINES = {
    "transformers": Engine("numprune itself, by the classes of transformers", (), "", None),
    "llama.cpp": Engine(
        "a GGUF file in llama-cpp-python", ("llama_cpp", "gguf"), "pip install llama-cpp-python gguf", "gguf"
    ),
    "onnxruntime": Engine(
        "a graph in ONNX Runtime", ("onnxruntime", "onnx", "onnxscript"), pip_install("onnx"), "onnx"
    ),
    "vllm": Engine("a folder in vLLM, of the environment that --python names", None, "", "transformers"),
    "vllm-transformers": Engine("the same, both models by its Transformers backend", None, "", "transformers"),
}


def chosen(names: Sequence[str] | None, python: str | None) -> list[str]:
    """The engines to measure: those asked for, or all that are at hand.

    Raises:
        InputError: one is not known, not installed, or has no environment; or the environment no engine.
    """
    if names is None:
        names = [name for name in ENGINES if _missing(name, python) is None and name != "vllm-transformers"]
    for name in names:
        if name not in ENGINES:
            raise InputError(f"Engine '{name}' is not known; use {', '.join(ENGINES)}.")
    foreign = [name for name in names if ENGINES[name].needs is None]
    if python is not None and not foreign:
        raise InputError(f"--python {python} is for vllm, which is not among the engines; add it to --engines.")
    for name in names:
        missing = _missing(name, python)
        if missing is not None:
            raise InputError(missing)
    if foreign:
        _check_python(str(python))
    if not names:
        raise InputError(f"There is no engine to measure; name one of {', '.join(ENGINES)}.")
    return list(dict.fromkeys(names))


def _missing(name: str, python: str | None) -> str | None:
    """Why an engine is not at hand, in a sentence; None when it is."""
    engine = ENGINES[name]
    if engine.needs is None:
        if python is None:
            return f"Engine {name} has an environment of its own; name its Python, as in --python ENV/bin/python."
        return None
    gone = [package for package in engine.needs if find_spec(package) is None]
    if gone:
        return f"Engine {name} needs the package {gone[0]}, which is not installed; run {engine.install}."
    return None


def _check_python(python: str) -> None:
    """Raise InputError where a program is no Python with vLLM."""
    try:
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        done = subprocess.run([python, "-c", code], capture_output=True, timeout=60)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{python} is no Python that runs here; name one, as in --python ENV/bin/python.") from error
    if done.returncode:
        raise InputError(f"{python} has no vllm; name the Python of an environment in which it is installed.")


def form(
    engine: str,
    name: str,
    model: Model | None,
    file: Path | None,
    folder: Path,
    *,
    gguf_dtype: str,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> str:
    """What an engine is to open: the path or name of the model itself where it takes that, else of an export of it.

    vLLM runs the code that lies in a folder, so it is given none but what was written here.

    Args:
        name: of the model, as it was given.
        model: as numprune opened it; None of a GGUF file that it does not open.
        file: the GGUF file that it is; None for others.
        folder: where exports are written, one of each format.
        gguf_dtype: of a GGUF file that is written.

    Raises:
        Refused: the model cannot be written so.
        Cancelled: `cancel` was set.
    """
    format = ENGINES[engine].format
    if format == "gguf" and file is not None:
        return str(file)
    if model is None:
        raise Refused("its layers differ, and a GGUF file of such opens in llama.cpp only")
    if format is None:
        return name
    target = folder / (f"{format}.gguf" if format == "gguf" else format)
    if not target.exists():
        options = {"dtype": gguf_dtype} if format == "gguf" else None
        try:
            export(model, target, format=format, options=options, progress=progress, cancel=cancel)
        except Cancelled:
            raise
        except NumpruneError as error:
            raise Refused(str(error).rstrip(".")) from error
    return str(target)
