"""Sharing a model on the Hugging Face Hub: a model card made from its recipe and report, and the upload."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from numprune.errors import CancelEvent, InputError, NumpruneError, Progress, check_cancelled
from numprune.evaluation.perplexity import Perplexity
from numprune.export.formats import FORMATS, check_export, export, formats_for
from numprune.models.model import Model
from numprune.models.placement import dtype_name

PAPER = "https://arxiv.org/abs/2412.12441"
BIBTEX = """\
@inproceedings{shen2025numerical,
  title     = {Numerical Pruning for Efficient Autoregressive Models},
  author    = {Shen, Xuan and others},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2025},
  eprint    = {2412.12441},
  archivePrefix = {arXiv}
}"""
COMPENSATION_WORDS = {
    "paper": "theorem 3 of the paper, module by module",
    "residual": "each module against the dense residual stream",
    "network": "each module, what feeds its units and the last norm, against the dense network",
    "bias": "the mean of what was removed, as a bias",
    "none": "none",
}
"""What a card calls the compensations of a recipe."""
_OPENED_BY_NAME = ("transformers", "stock")
"""Formats whose snippet takes a repository's name instead of a folder."""


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    format: str = "transformers",
    options: Mapping[str, str] | None = None,
    token: str | None = None,
    private: bool = True,
    perplexity_before: Perplexity | None = None,
    perplexity_after: Perplexity | None = None,
    perplexity_data: str | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> str:
    """Export a model, write its card and upload both as one commit; returns the repository's address.

    Names of folders and files of this machine are cut to their last part in everything that is uploaded.

    Args:
        repo_id: OWNER/NAME, or NAME in the token's own account; made where it does not exist.
        format, options: as in `numprune.export`.
        token: of an account that may write to it; None for the one `hf auth login` has stored. It is passed on with the
            requests and kept nowhere.
        private: whether a new repository is; one that exists stays as it is.
        perplexity_before, perplexity_after, perplexity_data: for the card, see `model_card`.

    Raises:
        InputError: the format cannot carry the model, or the name is none of a repository.
        NumpruneError: the model cannot be written, or the Hub cannot be reached or refuses.
        Cancelled: `cancel` was set; nothing was uploaded.
    """
    check_repo_id(repo_id)
    check_export(model, format, options)
    shared = _shareable(model)
    card = model_card(
        shared,
        perplexity_before=perplexity_before,
        perplexity_after=perplexity_after,
        perplexity_data=perplexity_data,
        repo_id=repo_id,
        format=format,
    )
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "export"
        target = folder / _file_name(repo_id, format)
        export(shared, target, format=format, options=options, progress=progress, cancel=cancel)
        (folder / "README.md").write_text(card, encoding="utf-8")
        check_cancelled(cancel)
        return _upload(folder, repo_id, token, private)


def model_card(
    model: Model,
    *,
    perplexity_before: Perplexity | None = None,
    perplexity_after: Perplexity | None = None,
    perplexity_data: str | None = None,
    repo_id: str | None = None,
    format: str = "transformers",
) -> str:
    """A README.md for the Hub: how a model was pruned, what that cost and how to load it.

    Args:
        perplexity_before, perplexity_after: of the dense and of the pruned model on the same text.
        perplexity_data: what that text is, in a few words or by its name.
        repo_id: the repository the card is for; a placeholder where it is not known yet.
        format: what the repository holds, a name in `numprune.FORMATS`.

    Raises:
        InputError: the two perplexities were not measured on the same tokens.
    """
    measured = [value for value in (perplexity_before, perplexity_after) if value is not None]
    if len({(value.tokens, value.sequence_length, value.stride) for value in measured}) > 1:
        raise InputError(
            "The perplexities before and after were not measured on the same tokens; measure both on one text."
        )
    repo_id = repo_id or "OWNER/NAME"
    base = _shown(model.recipe.model) if model.recipe is not None and model.recipe.model else _shown(model.name)
    parts = [
        f"---\n{_front_matter(model, format)}\n---",
        f"# {repo_id.rpartition('/')[2]}",
        _summary(model, base),
        _sizes(model, perplexity_before, perplexity_after),
    ]
    if measured:
        parts.append(_protocol(model, measured[0], perplexity_data))
    if model.recipe is not None:
        parts += ["## How it was pruned", _recipe_lines(model), _layers(model)]
        recipe = _shareable(model).recipe.to_json().rstrip()
        parts.append(
            f"<details><summary>The recipe, for <code>numprune prune --recipe</code></summary>\n\n"
            f"```json\n{recipe}\n```\n\n</details>"
        )
    parts += ["## Loading it", _loading(model, repo_id, format)]
    parts += ["## The method", f"[Numerical Pruning for Efficient Autoregressive Models]({PAPER}):"]
    parts.append(f"```bibtex\n{BIBTEX}\n```")
    return "\n\n".join(parts) + "\n"


def _front_matter(model: Model, format: str) -> str:
    tags = ["numprune", "structured-pruning"]
    if model.recipe is not None:
        tags.append("pruned")
    if format not in _OPENED_BY_NAME:
        tags.append(format)
    data = ModelCardData(
        base_model=None if model.recipe is None else _hub_name(model.recipe.model),
        library_name="transformers" if format in _OPENED_BY_NAME else "numprune",
        pipeline_tag="text-generation" if model.adapter.reads_text else None,
        tags=list(dict.fromkeys(tags)),
    )
    return data.to_yaml()


def _summary(model: Model, base: str) -> str:
    if model.recipe is None or model.report is None:
        return f"{base}, written by numprune."
    removed = 1 - model.report.parameters_after / model.report.parameters_before
    return (
        f"{base} with {removed:.1%} of its parameters taken out by structural pruning: whole attention heads and MLP"
        " channels are gone, and what is left are smaller dense matrices."
        f" {model.report.ratio_reached:.1%} of the prunable parameters were removed"
        f" ({model.report.ratio_asked:.1%} were asked for)."
    )


def _sizes(model: Model, before: Perplexity | None, after: Perplexity | None) -> str:
    report = model.report
    rows = [
        ("parameters", report and f"{report.parameters_before:,}", f"{model.parameters:,}"),
        ("weights, bytes", report and f"{report.bytes_before:,}", f"{model.stored_bytes:,}"),
        ("perplexity", before and _with_error(before), after and _with_error(after)),
    ]
    lines = ["| | dense | pruned |" if model.recipe else "| | before | this model |", "|---|---|---|"]
    lines += [f"| {name} | {left or ''} | {right or ''} |" for name, left, right in rows if left or right]
    return "\n".join(lines)


def _with_error(value: Perplexity) -> str:
    if value.standard_error != value.standard_error:  # a single window has none
        return f"{value:.2f}"
    return f"{value:.2f} ± {value * value.standard_error:.2f}"


def _protocol(model: Model, value: Perplexity, data: str | None) -> str:
    text = f" of {_shown(data)}" if data else ""
    return (
        f"Perplexity on {value.tokens:,} tokens{text}, ± one standard error over {value.windows} windows of at most"
        f" {value.sequence_length} tokens (stride {value.stride}), on {model.device.type.upper()} in"
        f" {dtype_name(model.dtype)}."
    )


def _recipe_lines(model: Model) -> str:
    recipe, calibration = model.recipe, model.recipe.calibration
    data = _shown(calibration.data) if calibration.data else "text that is not named"
    if calibration.data == "self":
        data = "what the dense model itself writes" if model.adapter.reads_text else "what the dense model itself draws"
    compensation = COMPENSATION_WORDS[recipe.compensation]
    lines = [
        f"scores: `{recipe.scorer}`, allocation `{recipe.allocation}`",
        f"compensation: {compensation} (`{recipe.compensation}`, damping {recipe.damping:g})",
        f"calibration: {data}, {calibration.samples} x {calibration.sequence_length} tokens, seed {calibration.seed}",
        f"training: {f'{recipe.healing} steps of healing' if recipe.healing else 'none'}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _layers(model: Model) -> str:
    """What is left in every layer."""
    units = model.units()
    what = "KV heads" if getattr(model.config, "num_key_value_heads", None) else "heads"
    shorter = ""
    if model.origins:
        shorter = f"Of the dense model these layers are left, in order: {', '.join(map(str, model.origins))}.\n\n"
    rows = [f"| {layer} | {units[layer, 'attention']} | {units[layer, 'mlp']} |" for layer in range(model.layers)]
    return shorter + "\n".join([f"| layer | {what} left | MLP channels left |", "|---|---|---|", *rows])


def _loading(model: Model, repo_id: str, format: str) -> str:
    name = repo_id.rpartition("/")[2]
    here = FORMATS[format]
    if format in _OPENED_BY_NAME:
        source, parts = repo_id, [f"```python\n{here.snippet(model, Path(repo_id))}\n```"]
    else:
        source = f"{name}/{_file_name(repo_id, format)}".rstrip("/")
        fetched = f"```sh\nhf download {repo_id} --local-dir {name}\n```"
        language = "python" if "import " in here.snippet(model, Path(source)) else "sh"
        parts = [fetched, f"```{language}\n{here.snippet(model, Path(source))}\n```"]
    others = {
        other: FORMATS[other]
        for other, refused in formats_for(model).items()
        if refused is None and other not in (format, "numprune") and format in (*_OPENED_BY_NAME, "numprune")
    }
    if others:
        commands = "\n".join(
            f"numprune export {source} --format {other} --out {name}-{other}{engine.suffix}  # {engine.about}"
            for other, engine in others.items()
        )
        parts += ["For other engines:", f"```sh\n{commands}\n```"]
    return "\n\n".join(parts)


def check_repo_id(repo_id: str) -> None:
    """Raise InputError for what is no name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"'{repo_id}' is no name for a repository; write OWNER/NAME of letters, digits, '-', '_' and '.'."
        ) from error


def _file_name(repo_id: str, format: str) -> str:
    """The file a format of one file is uploaded as; empty for a folder."""
    suffix = FORMATS[format].suffix
    return f"{repo_id.rpartition('/')[2]}{suffix}" if suffix else ""


def _shareable(model: Model) -> Model:
    """The same model with no folder of this machine in its names."""
    recipe = model.recipe
    if recipe is not None:
        calibration = dataclasses.replace(recipe.calibration, data=_shown(recipe.calibration.data))
        recipe = recipe.replace(model=_shown(recipe.model), calibration=calibration)
    return dataclasses.replace(model, name=_shown(model.name), recipe=recipe)


def _shown(name: str | None) -> str | None:
    """A hub id, dataset or embedded name as it is; of a path, the last part."""
    if name is None or not _is_path(name):
        return name
    return Path(name).expanduser().resolve().name


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or Path(name).exists()


def _hub_name(name: str | None) -> str | None:
    """The repository a model came from; None when it came from elsewhere."""
    repository = (name or "").partition(":")[0]
    return repository if repository.count("/") == 1 and not _is_path(repository) else None


def _upload(folder: Path, repo_id: str, token: str | None, private: bool) -> str:
    api = HfApi()
    token = token.strip() if token else None
    try:
        address = api.create_repo(repo_id, token=token, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, token=token, commit_message="Add the model numprune pruned"
        )
    except Exception as error:  # the Hub's own, the network's and the operating system's, in dozens of types
        # Requests hold the token, and some messages quote them, so neither is passed on.
        raise NumpruneError(_reason(error, repo_id, token)) from None
    return str(address)


def _reason(error: Exception, repo_id: str, token: str | None) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        if token is None:
            return f"The Hub lets nobody write to {repo_id} without a token; give one, or run hf auth login."
        return "The Hub does not know this token; make one that may write at https://huggingface.co/settings/tokens."
    if status == 403:
        return f"This token may not write to {repo_id}; give one that may, or a repository of its account."
    if status is not None:
        return f"The Hub refused {repo_id} with status {status}; see https://status.huggingface.co and try again."
    return f"The Hub was not reached ({type(error).__name__}); check the network and try again."
