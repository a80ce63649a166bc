"""`numprune bench engines` on the command line."""

import json

import pytest
from architectures import make_tokenizer, tiny_model
from engine_runs import COMPARISON

from numprune.cli.bench_engines import told
from numprune.evaluation.engines import comparison
from numprune.evaluation.engines.records import EngineComparison
from numprune.models.model import slice_module
from numprune.plan.keys import ModuleKey


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The folder of what is left of `tiny` when its first MLP loses channels."""
    folder = tmp_path_factory.mktemp("model") / "pruned"
    model = tiny_model("llama", tokenizer=make_tokenizer(), num_hidden_layers=3)
    keep = {ModuleKey(0, "mlp"): tuple(range(7))}
    model.around(slice_module(model.module, model.adapter, keep)).save(folder)
    return folder


def test_it_measures_prints_json_and_writes_the_file(run, tiny, pruned, tmp_path):
    flags = ["--engines", "transformers", "--batches", "1", "--prompt-tokens", "5", "--new-tokens", "3"]
    out = tmp_path / "new" / "engines.json"
    code, printed, err = run("bench", "engines", tiny, pruned, *flags, "--device", "cpu", "--out", out, "--json")
    assert code == 0, err
    found = EngineComparison.read(out)
    assert json.loads(printed) == json.loads(out.read_text())
    assert (found.dense.name, found.pruned.name) == (str(tiny), str(pruned))
    assert (found.prompt_tokens, found.new_tokens, found.repetitions) == (5, 3, 3)
    (result,) = found.engines
    assert (result.engine, result.refused, [at.batch for at in result.batches]) == ("transformers", None, [1])
    assert result.batches[0].decode_promised > 1


def test_flags_reach_the_measurement(run, monkeypatch):
    asked = {}

    def compare(*models, **options):
        asked.update(options, models=models)
        return COMPARISON

    monkeypatch.setattr(comparison, "compare_engines", compare)
    flags = ["--engines", "transformers, vllm", "--python", "env/bin/python", "--batches", "2,4", "--repeats", "7"]
    flags += ["--gguf-dtype", "q8_0", "--eager", "--dtype", "bfloat16"]
    code, printed, err = run("bench", "engines", "dense", "pruned", *flags)
    assert code == 0, err
    del asked["progress"]
    assert asked == {
        "models": ("dense", "pruned"),
        "engines": ["transformers", "vllm"],
        "python": "env/bin/python",
        "batches": [2, 4],
        "prompt_tokens": 64,
        "new_tokens": 64,
        "repetitions": 7,
        "device": "auto",
        "dtype": "bfloat16",
        "gguf_dtype": "q8_0",
        "eager": True,
    }
    assert printed == told(COMPARISON) + "\n"
    run("bench", "engines", "dense", "pruned")
    assert "engines" not in {name for name, value in asked.items() if value is None}


def test_the_table_has_every_figure_its_range_and_every_reason():
    text = told(COMPARISON)
    for said in (
        "2,000,000 dense, 1,500,000 pruned",
        "64 prompt and 32 new tokens",
        "3 runs of each model",
        "2 threads of a processor, 2 cores",
        "transformers 5.23.0 on cpu: LlamaForCausalLM in float32, 8.0 MB -> LlamaForCausalLM in float32, 6.0 MB",
        "125.0 (115.0 to 135.0)",
        "1.25x (1.20x to 1.30x)",
        "1.50x",
        "83%",  # 1.25 of 1.5
        "not known",
        "batch 8: not measured; the pruned model: out of <memory>.",
        "vllm: not measured; the dense model: heads are <24> wide.",
    ):
        assert said in text, said
    assert max(map(len, text.splitlines()[4:])) < 130


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "was given 0 models; name the dense one and the pruned one"),
        (["{tiny}"], "was given 1 models"),
        (["{tiny}", "{tiny}", "--engines", "tensorrt"], "Engine 'tensorrt' is not known"),
        (["{tiny}", "{tiny}", "--engines", ""], "no engine to measure; name one"),
        (["{tiny}", "{tiny}", "--engines", "vllm"], "--python ENV/bin/python"),
        (["{tiny}", "{tiny}", "--batches", "1,x"], "batches is '1,x'; give numbers such as 1,8,32"),
        (["{tiny}", "{tiny}", "--batches", "-1"], "batches is -1"),
        (["{tiny}", "{tiny}", "--prompt-tokens", "0"], "prompt_tokens is 0"),
        (["{tiny}", "{tiny}", "--repeats", "2"], "give at least 3"),
        (["{tiny}", "{tiny}", "--engines", "transformers", "--prompt-tokens", "90"], "exceed the 64"),
    ],
)
def test_bad_input_is_one_sentence(run, tiny, argv, says):
    code, printed, err = run("bench", "engines", *[word.format(tiny=tiny) for word in argv])
    assert (code, printed) == (2, "")
    assert says in err
    assert err.strip().count("\n") == 0
    assert err.strip().endswith(".")


def test_a_folder_that_is_no_model_is_one_sentence(run, tiny, tmp_path):
    few = ["--engines", "transformers", "--prompt-tokens", "5", "--new-tokens", "3"]
    code, printed, err = run("bench", "engines", tiny, tmp_path, *few)
    assert (code, printed) == (3, "")
    assert "has no config.json" in err
    assert err.strip().count("\n") == 0


def test_other_benchmarks_take_no_model(run, tiny):
    code, _, err = run("bench", "score", tiny)
    assert code == 2
    assert "bench score takes no model" in err
