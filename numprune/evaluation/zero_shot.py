"""Zero-shot and few-shot accuracy, as EleutherAI's lm-evaluation-harness defines and measures it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from numprune.errors import CancelEvent, InputError, Progress, check_cancelled, pip_install
from numprune.generation.text import start_token
from numprune.models.model import Model
from numprune.models.placement import dtype_name

PAPER_TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The common-sense tasks of the paper's table 2, by their names in the harness."""

METRICS = ("acc_norm", "acc", "exact_match")
"""The metric a task is scored by: the first of these it defines, else its own first one."""


@dataclass(frozen=True)
class TaskScore:
    """One task.

    Attributes:
        task: its name in the harness.
        metric: which of its metrics `value` is: accuracy by log-likelihood per byte (acc_norm) where the task has it,
            by log-likelihood (acc), or the share of exact answers (exact_match, with the harness's filter).
        value: in [0, 1] for all of these.
        stderr: standard error over the examples; None for a single one, or where the harness gives none.
        n: examples.
        shots: solved examples in the prompt.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    shots: int


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy of one model.

    Attributes:
        model: its name.
        scores: by task, in the order they were asked for; a name for several tasks that defines no mean gives one score
            a task.
        limit: most examples taken of a task; None for all, as published figures have it.
        harness: version of lm-eval.
        seconds, device, dtype: how long it took, where and in what.
    """

    model: str
    scores: tuple[TaskScore, ...]
    limit: int | None
    harness: str
    seconds: float
    device: str
    dtype: str

    @property
    def mean(self) -> float:
        """Mean over the tasks, each weighing the same, as the paper's table 2 averages."""
        return sum(score.value for score in self.scores) / len(self.scores)

    def __getitem__(self, task: str) -> TaskScore:
        return next(score for score in self.scores if score.task == task)

    def to_pandas(self) -> pd.DataFrame:
        return pd.DataFrame([asdict(score) for score in self.scores])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": self.mean}


def zero_shot(
    model: Model,
    tasks: Sequence[str] = PAPER_TASKS,
    *,
    limit: int | None = None,
    shots: int | None = None,
    include: str | Path | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> ZeroShot:
    """Accuracy of a dense or pruned language model on tasks of the harness (paper, tables 2 and 8).

    The prompts, the data and the metrics are the harness's; its version and the number of shots come with the
    result, since figures of other versions and shots cannot be compared. Data is downloaded once, by the harness.

    Args:
        tasks: names in the harness, such as "boolq", "mmlu" or "gsm8k".
        limit: take only the first examples of every task.
        shots: solved examples in the prompt; None for what the task defines (0 for the paper's seven and MMLU, 5 for
            GSM8K). A task that forbids them has none.
        include: a folder with tasks of your own in the harness's YAML format.
        batch_size: sequences per forward pass.

    Raises:
        InputError: lm-eval is not installed, a task is unknown or its data cannot be had, the model draws images or
            has no tokenizer, or a number is out of range.
        Cancelled: `cancel` was set.
    """
    began = time.monotonic()
    if not tasks:
        raise InputError(f"There is no task to measure; name some, such as {', '.join(PAPER_TASKS[:3])}.")
    for name, value, least in (("limit", limit, 1), ("shots", shots, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; give at least {least}.")
    if not model.adapter.reads_text:
        raise InputError(f"{model.name} draws images; zero-shot tasks are for language models.")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, which reads the tasks; open a model that comes with one.")
    evaluator, manager = _harness(tasks, include)
    reader = _reader(model, batch_size, cancel)
    scores: list[TaskScore] = []
    for index, name in enumerate(dict.fromkeys(tasks)):
        check_cancelled(cancel)
        if progress is not None:
            progress(index, len(tasks), name)
        loaded = _load(manager, name, shots)
        results = evaluator.evaluate(lm=reader, task_dict=loaded, limit=limit, log_samples=False)
        scores += _scores(results, [name] if name in loaded["groups"] else list(loaded["tasks"]))
    if progress is not None:
        progress(len(tasks), len(tasks), "zero-shot tasks")
    return ZeroShot(
        model=model.name,
        scores=tuple(scores),
        limit=limit,
        harness=f"lm-eval {version('lm-eval')}",
        seconds=time.monotonic() - began,
        device=str(model.device),
        dtype=dtype_name(model.dtype),
    )


def _harness(tasks: Sequence[str], include: str | Path | None) -> tuple[Any, Any]:
    """The evaluator of lm-eval and an index of tasks that knows all of these."""
    if include is not None and not Path(include).is_dir():
        raise InputError(f"{include} is no folder; name the folder that holds your tasks' YAML files.")
    try:
        evaluator = import_module("lm_eval.evaluator")
        index = import_module("lm_eval.tasks").TaskManager
    except ImportError as error:
        raise InputError(f"Zero-shot tasks need lm-eval ({error}); run {pip_install('eval')}.") from error
    own = None if include is None else index(include_path=str(include), include_defaults=False)
    # Reading the harness's own thousands of files takes seconds.
    if own is not None and set(tasks) <= set(own.all_tasks):
        return evaluator, own
    everything = index(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if task not in everything.all_tasks]
    if unknown:
        raise InputError(
            f"Task '{unknown[0]}' is not known to lm-eval; see `lm-eval ls tasks`, or name the folder it is defined in."
        )
    return evaluator, everything


def _reader(model: Model, batch_size: int, cancel: CancelEvent | None) -> Any:
    """The model as the harness reads it. Its tokenizer is a copy, since the harness may give it a padding token."""
    from lm_eval.models.huggingface import HFLM

    class Reader(HFLM):
        """Asks whether to go on before every pass, and draws no bars of its own."""

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **options: Any) -> Any:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, *args: Any, **options: Any) -> torch.Tensor:
            check_cancelled(cancel)
            return super()._model_call(*args, **options)

        def _model_generate(self, *args: Any, **options: Any) -> torch.Tensor:
            check_cancelled(cancel)
            return super()._model_generate(*args, **options)

    known = model.tokenizer.bos_token_id is not None or model.tokenizer.eos_token_id is not None
    return Reader(
        pretrained=model.module,
        tokenizer=copy.deepcopy(model.tokenizer),
        backend="causal",
        batch_size=batch_size,
        max_length=model.maximum_length,
        prefix_token_id=None if known else start_token(model),
    )


def _load(manager: Any, name: str, shots: int | None) -> dict[str, Any]:
    """The tasks of a name, with their data and the number of shots set."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # hub, network and parsing errors come in many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"The data of task {name} cannot be had ({first}); check the network, or the files the task names."
        ) from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if shots is not None and own != 0:
            task.set_config(key="num_fewshot", value=shots)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # the harness's own
    return loaded


def _scores(results: dict[str, Any], names: Sequence[str]) -> list[TaskScore]:
    groups = results.get("group_subtasks", {})
    scores = []
    for name in names:
        values = {key: value for key, value in results["results"][name].items() if _is_value(key, value)}
        metric = next((key for wanted in METRICS for key in values if key.split(",")[0] == wanted), next(iter(values)))
        leaves = _leaves(name, groups)
        label, _, rule = metric.partition(",")
        stderr = results["results"][name].get(f"{label}_stderr,{rule}")
        scores.append(
            TaskScore(
                task=name,
                metric=label if rule == "none" else f"{label} ({rule})",
                value=float(values[metric]),
                stderr=float(stderr) if isinstance(stderr, float) and math.isfinite(stderr) else None,
                n=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
                shots=max(results["n-shot"][leaf] for leaf in leaves),
            )
        )
    return scores


def _is_value(key: str, value: Any) -> bool:
    return "," in key and "_stderr," not in key and isinstance(value, int | float)


def _leaves(name: str, groups: dict[str, list[str]]) -> list[str]:
    """The tasks of a group, those of its groups included; a task is its own."""
    children = groups.get(name)
    return [name] if not children else [leaf for child in children for leaf in _leaves(child, groups)]
