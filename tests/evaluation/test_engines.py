"""Two models in the engines that are installed, and in stand-ins where it matters what an engine answers."""

import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from architectures import make_tokenizer, random_scores, tiny_model
from engine_runs import COMPARISON

import numprune
from numprune import Cancelled, InputError, LoadError, Recipe, allocate
from numprune.evaluation.engines import comparison, forms, processes, worker
from numprune.evaluation.engines.comparison import compare_engines
from numprune.evaluation.engines.counts import of_gguf, of_model
from numprune.evaluation.engines.processes import Refused, Worker, own_environment
from numprune.evaluation.engines.records import EngineComparison
from numprune.evaluation.speed_comparison import looked_up_bytes, prompt_flops
from numprune.files import to_json
from numprune.models.model import slice_module

QUICK = {"prompt_tokens": 6, "new_tokens": 4, "batches": (1, 3), "device": "cpu"}
HERE = [name for name in ("transformers", "llama.cpp", "onnxruntime") if forms._missing(name, None) is None]


def smaller(model):
    """What a plan with layers that differ leaves of a model, as it is."""
    plan = allocate(random_scores(model), Recipe(ratio=0.4))
    return model.around(slice_module(model.module, model.adapter, plan.keep))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of a tiny dense model and of what was pruned of it, unevenly."""
    folder = tmp_path_factory.mktemp("pair")
    dense = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer())
    pruned = smaller(dense)
    dense.save(folder / "dense")
    pruned.save(folder / "pruned")
    return folder / "dense", folder / "pruned"


@pytest.fixture(scope="module")
def found(pair):
    """Both models in every engine that is installed here."""
    return compare_engines(*pair, engines=HERE, **QUICK)


# In the engines themselves.


def test_every_installed_engine_runs_both_models(found):
    assert [result.engine for result in found.engines] == HERE
    for result in found.engines:
        assert result.refused is None, result.refused
        assert [(at.batch, at.refused) for at in result.batches] == [(1, None), (3, None)]
        assert result.pruned.weights < result.dense.weights
        assert result.device == "cpu"
        for at in result.batches:
            for side in (at.dense, at.pruned):
                for middle, low, high in (side.decode, side.prefill, side.first_token):
                    assert 0 < low <= middle <= high
                # Tokens per second are of all sequences, and the first token is there when the prompts were read.
                assert side.prefill[0] == pytest.approx(at.batch * 6 / side.first_token[0])
            assert 0 < at.decode_gain[1] <= at.decode_gain[0] <= at.decode_gain[2]


def test_promises_and_the_cache_are_counted_from_the_sizes(pair, found):
    dense, pruned = (numprune.load(folder) for folder in pair)
    itemsize = {"transformers": 4, "llama.cpp": 2, "onnxruntime": 4}
    flops = prompt_flops(dense, 6) / prompt_flops(pruned, 6)
    for result in found.engines:
        width = itemsize[result.engine]
        for at in result.batches:
            assert at.prefill_promised == pytest.approx(flops)
            step = []
            for model, opened, side in ((dense, result.dense, at.dense), (pruned, result.pruned, at.pruned)):
                numbers = numprune.sizes(model).kv_bytes // model.dtype.itemsize
                assert side.kv_bytes == at.batch * numbers * width * (6 + 4)
                assert looked_up_bytes(model) == 0  # the embedding is the output layer
                step.append(opened.weights + at.batch * numbers * width * (6 + 2))
            assert at.decode_promised == pytest.approx(step[0] / step[1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is known on Linux")
def test_the_peak_is_at_least_what_is_read(found):
    for result in found.engines:
        for at in result.batches:
            # llama.cpp has half of a page in memory that it did not read.
            assert at.dense.peak_bytes > 0.5 * result.dense.weights


def test_the_weights_are_those_of_the_type_that_runs(pair, found):
    parameters = numprune.load(pair[0]).parameters
    assert found.dense.parameters == parameters
    by_engine = {result.engine: result.dense.weights for result in found.engines}
    assert by_engine["transformers"] == 4 * parameters
    if "onnxruntime" in by_engine:
        assert 4 * parameters <= by_engine["onnxruntime"]
    if "llama.cpp" in by_engine:  # float16, but for the norms
        assert 2 * parameters <= by_engine["llama.cpp"] < 2.2 * parameters


def test_the_file_holds_all_of_it(found, tmp_path):
    file = tmp_path / "engines.json"
    file.write_text(to_json(found.to_dict()))
    assert EngineComparison.read(file) == found
    table = found.to_pandas()
    assert len(table) == len(HERE) * 2 * 2
    assert table[table["model"] == "pruned"]["decode_promised"].notna().all()


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python, which is built from source")
def test_a_gguf_file_is_run_as_it_is_and_not_written_again(pair, tmp_path, monkeypatch):
    file = tmp_path / "pruned.gguf"
    numprune.export(numprune.load(pair[1]), file, format="gguf", options={"dtype": "f32"})
    written = []
    real = forms.export
    monkeypatch.setattr(forms, "export", lambda model, *a, **k: written.append(model.name) or real(model, *a, **k))
    (result,) = compare_engines(pair[0], file, engines=["llama.cpp"], **QUICK | {"batches": (1,)}).engines
    assert written == [str(pair[0])]
    assert (result.dense.dtype, result.pruned.dtype) == ("F16", "F32")
    assert result.batches[0].refused is None


def test_a_gguf_file_whose_layers_differ_is_counted_by_what_it_says(pair, tmp_path, scripted):
    """numprune does not open such a file; its numbers are those of the model that it was made from."""
    pytest.importorskip("gguf")
    for which in (0, 1):
        model, file = numprune.load(pair[which]), tmp_path / f"{which}.gguf"
        numprune.export(model, file, format="gguf")
        ours, theirs = of_model(model, 6), of_gguf(file, model.name, 6)
        assert theirs == replace(ours, vocabulary=theirs.vocabulary)
        theirs.check_vocabulary(ours)
    with pytest.raises(LoadError):
        numprune.load(file)
    scripted.seconds = {"dense": [(1.0, 1.0)] * 8, "1.gguf": [(1.0, 1.0)] * 8}
    found = compare_engines(pair[0], file, engines=["transformers"], **QUICK)
    assert (
        found.engines[0].refused
        == "the pruned model: its layers differ, and a GGUF file of such opens in llama.cpp only"
    )


@torch.inference_mode()
def greedy(model, prompt_tokens, count):
    """The likeliest tokens after the prompt that runs are made with."""
    ids = torch.tensor([worker.prompt_of(prompt_tokens)])
    for _ in range(count):
        ids = torch.cat([ids, model.module(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, prompt_tokens:].tolist()


@pytest.mark.parametrize("engine", ["llama.cpp", "onnxruntime"])
def test_what_is_timed_is_what_the_model_does(tmp_path, engine):
    """Every sequence of a batch, with its own positions and cache, is continued as the model would."""
    if engine not in HERE:
        pytest.skip(f"{engine} is not installed")
    model = smaller(tiny_model("llama", tokenizer=make_tokenizer()))
    assert len(set(greedy(model, 6, 6))) > 2  # or it would not tell where a token stands
    format, options = {"llama.cpp": ("gguf", {"dtype": "f32"}), "onnxruntime": ("onnx", None)}[engine]
    target = tmp_path / ("model.gguf" if format == "gguf" else "model")
    numprune.export(model, target, format=format, options=options)
    runner = worker.ENGINES[engine]({"path": str(target), "threads": 1, "device": "cpu"})
    step, written = {"llama.cpp": "_decoded", "onnxruntime": "_step"}[engine], []
    real = getattr(runner, step)

    def noted(*given):
        done = real(*given)
        written.append(done if engine == "llama.cpp" else done[0][:, 0].tolist())
        return done

    setattr(runner, step, noted)
    for batch in (3, 3, 1):
        written.clear()
        runner.run(batch, 6, 5)
        assert written == [[token] * batch for token in greedy(model, 6, 6)]


@pytest.mark.vllm
@pytest.mark.skipif("NUMPRUNE_VLLM" not in os.environ, reason="NUMPRUNE_VLLM names no environment with vLLM")
def test_vllm_runs_both_models(tmp_path):
    dense = tiny_model("llama", tokenizer=make_tokenizer(), hidden_size=128, head_dim=32, intermediate_size=64)
    pruned = smaller(dense)
    dense.save(tmp_path / "dense")
    pruned.save(tmp_path / "pruned")
    python = Path(os.environ["NUMPRUNE_VLLM"]) / "bin" / "python"
    both, engines = (tmp_path / "dense", tmp_path / "pruned"), ["vllm", "vllm-transformers"]
    found = compare_engines(*both, engines=engines, python=python, eager=True, **QUICK)
    for result in found.engines:
        assert result.refused is None, result.refused
        assert result.pruned.runs_as == "TransformersForCausalLM"
        assert [at.refused for at in result.batches] == [None, None]
        assert result.dense.weights == 4 * dense.parameters
    assert [result.dense.runs_as for result in found.engines] == ["LlamaForCausalLM", "TransformersForCausalLM"]


# With stand-ins for engines.


class Scripted:
    """A worker that takes the seconds it is told, and notes who was asked what."""

    asked = []
    seconds = {}
    refusing = {}

    def __init__(self, question, environment, *, python=None, cancel=None):
        self.name = Path(question["path"]).name
        if self.name in self.refusing and self.refusing[self.name] is None:
            raise Refused("it has no layers of that kind")
        self.left = list(self.seconds[self.name])
        self.facts = {"version": "1", "device": "cpu", "dtype": "float32", "runs_as": "Llama", "weights": 1000}
        self.facts["cache_itemsize"] = 4

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, question):
        self.asked.append((self.name, question["batch"]))
        if self.refusing.get(self.name) == question["batch"]:
            raise Refused("out of memory")
        first, rest = self.left.pop(0)
        return {"first": first, "rest": rest, "peak": len(self.left)}


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(comparison, "Worker", Scripted)
    monkeypatch.setattr(Scripted, "asked", [])
    monkeypatch.setattr(Scripted, "refusing", {})
    dense = [(9.0, 9.0), (1.0, 2.0), (2.0, 4.0), (1.0, 2.0)]
    pruned = [(9.0, 9.0), (0.5, 1.0), (1.0, 2.0), (1.0, 4.0)]
    monkeypatch.setattr(Scripted, "seconds", {"dense": dense * 2, "pruned": pruned * 2})
    return Scripted


def test_runs_are_made_in_turn_and_gains_are_of_runs_side_by_side(pair, scripted):
    """A machine that halves its speed for one round changes no gain of that round."""
    (result,) = compare_engines(*pair, engines=["transformers"], **QUICK | {"batches": (2,)}).engines
    assert scripted.asked == [("dense", 2), ("pruned", 2)] * 4
    (at,) = result.batches
    assert at.decode_gain == (2.0, 0.5, 2.0)
    assert at.prefill_gain == (2.0, 1.0, 2.0)
    # 2 sequences of 4 new tokens; the first run of each only warms up.
    assert at.dense.decode == (4.0, 2.0, 4.0)
    assert at.pruned.prefill == (12.0, 12.0, 24.0)
    assert at.dense.first_token == (1.0, 1.0, 2.0)
    assert at.dense.peak_bytes == 6


def test_a_batch_that_fails_has_its_reason_and_the_others_their_figures(pair, scripted):
    scripted.refusing = {"pruned": 3}
    (result,) = compare_engines(*pair, engines=["transformers"], **QUICK).engines
    one, three = result.batches
    assert one.refused is None
    assert three.refused == "the pruned model: out of memory"
    assert (three.dense, three.pruned, three.decode_gain) == (None, None, None)
    assert three.prefill_promised > 1


def test_an_engine_that_takes_one_model_only_is_named_with_the_reason(pair, scripted):
    scripted.refusing = {"pruned": None}
    calls = []
    found = compare_engines(
        *pair, engines=["transformers"], progress=lambda *told: calls.append(told), **QUICK | {"batches": (1,)}
    )
    (result,) = found.engines
    assert result.refused == "the pruned model: it has no layers of that kind"
    assert (result.batches, result.version) == ([], None)


def test_a_batch_that_is_named_twice_is_measured_once(pair, scripted):
    (result,) = compare_engines(*pair, engines=["transformers"] * 2, **QUICK | {"batches": (2, 2)}).engines
    assert [at.batch for at in result.batches] == [2]


def test_no_code_of_a_folder_is_run(pair, stand_in, tmp_path):
    """vLLM runs what lies in a folder; it is given exports, in which lies what numprune wrote."""
    foreign = tmp_path / "foreign"
    numprune.export(numprune.load(pair[1]), foreign)
    (code,) = foreign.glob("*.py")
    code.write_text("raise SystemExit")
    unsafe = "any('SystemExit' in open(os.path.join(asked['path'], name)).read() for name in os.listdir(asked['path'])"
    python = stand_in(f"assert not {unsafe} if name.endswith('.py'))")
    (result,) = compare_engines(foreign, foreign, engines=["vllm"], python=python, **QUICK).engines
    assert result.refused is None, result.refused


def test_progress_counts_every_run(pair, scripted):
    calls = []
    compare_engines(*pair, engines=["transformers"], progress=lambda *told: calls.append(told), **QUICK)
    assert calls[0] == (1, 16, "timing transformers, batch 1")
    assert calls[-1] == (16, 16, "timing transformers, batch 3")


def test_what_a_format_cannot_carry_is_the_reason(tmp_path, scripted, monkeypatch):
    """Gemma is no architecture of the GGUF export."""
    monkeypatch.setattr(forms, "find_spec", lambda name: True)
    folder = tmp_path / "gemma"
    tiny_model("gemma", tokenizer=make_tokenizer()).save(folder)
    (result,) = compare_engines(folder, folder, engines=["llama.cpp"], **QUICK).engines
    assert result.refused.startswith("the dense model: ")
    assert "'gguf' cannot carry it" in result.refused


STAND_IN = """\
#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    sys.exit(0)
asked = json.loads(sys.stdin.readline())
{before}
assert "PYTHONPATH" not in os.environ and os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
assert os.path.isfile(os.path.join(asked["path"], "config.json"))
facts = {{"version": asked["implementation"], "device": "cpu", "dtype": "float32", "runs_as": "L", "cache_itemsize": 4}}
print(json.dumps({{**facts, "weights": 4 * asked["parameters"]}}), flush=True)
for line in sys.stdin:
    run = json.loads(line)
    assert run == {{"batch": run["batch"], "prompt_tokens": 6, "new_tokens": 4}}
    print(json.dumps({{"first": 0.5, "rest": 1.0, "peak": None}}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path):
    """Writes a program that answers as the Python of an environment with vLLM would, and may fail first."""

    def write(before=""):
        file = tmp_path / "python"
        file.write_text(STAND_IN.format(python=sys.executable, before=before))
        file.chmod(0o755)
        return file

    return write


def test_vllm_runs_in_the_environment_that_was_named(pair, stand_in):
    found = compare_engines(*pair, engines=["vllm", "vllm-transformers"], python=stand_in(), **QUICK)
    for result, implementation in zip(found.engines, ("auto", "transformers"), strict=True):
        assert (result.refused, result.version) == (None, implementation)
        assert result.dense.weights == 4 * found.dense.parameters
        for at in result.batches:
            assert at.dense.decode == (at.batch * 4.0,) * 3
            assert at.dense.peak_bytes is None
            assert at.decode_gain == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("print(json.dumps({'refused': 'heads are 24 wide'})); sys.exit()", "heads are 24 wide"),
        ("print('one\\nlast words', file=sys.stderr); sys.exit(3)", "last words"),
        ("sys.exit(3)", "its process ended with code 3"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9"),
    ],
)
def test_an_engine_that_ends_says_why(pair, stand_in, before, says):
    (result,) = compare_engines(*pair, engines=["vllm"], python=stand_in(before), **QUICK).engines
    assert result.refused.startswith("the dense model: ")
    assert says in result.refused


def test_stop_ends_the_engines(pair, stand_in):
    started = []

    class Late:
        """Set once an engine was started and has started something."""

        def is_set(self):
            for each in psutil.Process().children(recursive=True):
                told = " ".join(each.cmdline())
                if each not in started and ("worker.py" in told or told == "sleep 61"):
                    started.append(each)
            return len(started) == 2

    python = stand_in("import subprocess, time; subprocess.Popen(['sleep', '61']); time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(Cancelled):
        compare_engines(*pair, engines=["vllm"], python=python, cancel=Late(), **QUICK)
    assert time.monotonic() - began < 30
    _, alive = psutil.wait_procs(started, timeout=10)
    assert len(started) == 2
    assert alive == []


# The program that runs in an engine's environment.


def test_the_program_needs_nothing_but_the_standard_library():
    body = ast.parse(processes.WORKER.read_text()).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_what_an_engine_prints_does_not_come_between_its_answers(tmp_path):
    program = tmp_path / "noisy.py"
    program.write_text(
        "import os, runpy, sys\n"
        f"worker = runpy.run_path({str(processes.WORKER)!r})\n"
        "class Noisy:\n"
        "    facts = {'version': '1'}\n"
        "    def __init__(self, asked): print('loading'); os.system('echo more')\n"
        "    def run(self, batch):\n"
        "        print('running')\n"
        "        if batch > 1: raise ValueError('too large:\\nsee the manual')\n"
        "        return {'batch': batch}\n"
        "worker['ENGINES']['noisy'] = Noisy\n"
        "worker['main']()\n"
    )
    asked = "\n".join(map(json.dumps, ({"engine": "noisy"}, {"batch": 1}, {"batch": 2}, {"batch": 1})))
    done = subprocess.run([sys.executable, program], input=asked, capture_output=True, text=True, timeout=60)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [{"version": "1"}, {"batch": 1}, {"refused": "too large"}, {"batch": 1}]
    assert done.stderr.count("running") == 3


def test_the_process_has_gone_when_the_block_ends(pair):
    asked = {"engine": "transformers", "path": str(pair[0]), "threads": 1, "device": "cpu", "dtype": "auto"}
    with Worker(asked, own_environment()) as worker:
        process = psutil.Process(worker._process.pid)
        assert worker.ask({"batch": 2, "prompt_tokens": 3, "new_tokens": 2})["first"] > 0
        with pytest.raises(Refused):
            worker.ask({"batch": 1, "prompt_tokens": 3, "new_tokens": 2, "unknown": 1})
    assert not process.is_running()


# What is refused.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engines": ["tensorrt"]}, "Engine 'tensorrt' is not known; use transformers, llama.cpp"),
        ({"engines": []}, "no engine to measure"),
        ({"engines": ["vllm"]}, "name its Python, as in --python"),
        ({"engines": ["vllm"], "python": "/nowhere/python"}, "/nowhere/python is no Python that runs here"),
        ({"engines": ["vllm"], "python": "/bin/false"}, "/bin/false has no vllm"),
        ({"engines": ["transformers"], "python": sys.executable}, "for vllm, which is not among the engines"),
        ({"batches": ()}, "batches is 0"),
        ({"batches": (1, 0)}, "batches is 0"),
        ({"new_tokens": 0}, "new_tokens is 0"),
        ({"prompt_tokens": 61}, "61 prompt tokens, the first one after them and 4 more exceed the 64 that"),
        ({"repetitions": 2}, "repetitions is 2; give at least 3"),
        ({"gguf_dtype": "q1"}, "gguf_dtype is 'q1'"),
        ({"dtype": "int3"}, "Data type 'int3' is not known"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(pair, options, says):
    with pytest.raises(InputError, match=says) as refused:
        compare_engines(*pair, **{**QUICK, "engines": ["transformers"], **options})
    assert str(refused.value).endswith(".")


def test_an_engine_that_is_not_installed_is_left_out_or_refused_by_name(pair, scripted, monkeypatch):
    monkeypatch.setattr(forms, "find_spec", lambda name: None)
    found = compare_engines(*pair, **QUICK)
    assert [result.engine for result in found.engines] == ["transformers"]
    with pytest.raises(InputError, match=r"llama\.cpp needs the package llama_cpp, which is not installed; run pip"):
        compare_engines(*pair, engines=["transformers", "llama.cpp"], **QUICK)


def test_models_of_different_vocabularies_are_refused(pair, tmp_path):
    larger = tmp_path / "larger"
    tiny_model("llama", tokenizer=make_tokenizer(), vocab_size=120).save(larger)
    with pytest.raises(InputError, match=r"larger has another vocabulary than .*dense; give the model"):
        compare_engines(pair[0], larger, engines=["transformers"], **QUICK)
    # As many tokens, two of them the other way round.
    swapped = tmp_path / "swapped"
    tiny_model("llama-gqa-tied", tokenizer=make_tokenizer()).save(swapped)
    file = swapped / "tokenizer.json"
    spec = json.loads(file.read_text())
    (one, first), (other, second) = list(spec["model"]["vocab"].items())[20:22]
    spec["model"]["vocab"] |= {one: second, other: first}
    file.write_text(json.dumps(spec))
    with pytest.raises(InputError, match="another vocabulary"):
        compare_engines(pair[0], swapped, engines=["transformers"], **QUICK)


def test_only_models_that_read_text_and_hold_their_weights_are_taken(pair, images_folder, tmp_path):
    with pytest.raises(InputError, match="draws images"):
        compare_engines(images_folder, images_folder, engines=["transformers"], **QUICK)
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "model.onnx").touch()
    with pytest.raises(InputError, match="is an ONNX export"):
        compare_engines(pair[0], tmp_path / "graph", engines=["transformers"], **QUICK)
    with pytest.raises(LoadError, match=r"has no config\.json"):
        compare_engines(pair[0], tmp_path, engines=["transformers"], **QUICK)


# The file.


def edited(*path, value):
    """The file with another value at one place."""
    whole = json.loads(to_json(COMPARISON.to_dict()))
    place = whole
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(whole)


FIRST = ("engines", 0, "batches", 0)
REFUSED = asdict(COMPARISON.engines[2])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "[" * 5000,
        '{"kind": "numprune bench engines, version 1"}',
        edited("kind", value="numprune bench engines, version 9"),
        edited("more", value=1),
        edited("threads", value=True),
        edited("threads", value="2"),
        edited("threads", value=-1),
        edited("threads", value=1.5),
        edited("threads", value=10**400),
        edited("machine", value=None),
        edited("engines", value={}),
        edited("engines", 0, "version", value=None),
        edited("engines", 0, "refused", value=["x"]),
        edited("engines", 0, "engine", value=3),
        edited(*FIRST, "dense", value=None),
        edited(*FIRST, "refused", value="both"),
        edited(*FIRST, "decode_gain", value=[1.0, 1.0]),
        edited(*FIRST, "decode_gain", value=[1.0, 2.0, 3.0]),
        edited(*FIRST, "decode_promised", value=float("nan")),
        edited(*FIRST, "dense", "decode", value=[1.0, 0.5, float("inf")]),
        edited(*FIRST, "dense", "decode", 0, value="1"),
        edited(*FIRST, "dense", "kv_bytes", value=None),
        edited("machine", value="x" * 5001),
        edited("engines", 1, "engine", value="transformers"),
        edited("engines", 0, "batches", 1, "batch", value=1),
        edited("engines", value=[{**REFUSED, "engine": str(number)} for number in range(201)]),
    ],
    ids=lambda text: text[-40:] if len(text) < 60 else None,
)
def test_a_file_that_is_anything_else_is_refused_in_a_sentence(tmp_path, text):
    file = tmp_path / "engines.json"
    file.write_text(text)
    with pytest.raises(
        InputError, match=r"^engines\.json was not written by `numprune bench engines --out` \("
    ) as refused:
        EngineComparison.read(file)
    assert str(refused.value).endswith("; choose another file.")
    assert len(str(refused.value)) < 300


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{")
    for name in ("a.json", "missing.json"):
        with pytest.raises(InputError, match="was not written by"):
            EngineComparison.read(tmp_path / name)


def test_a_file_comes_back_as_it_was(tmp_path):
    file = tmp_path / "engines.json"
    file.write_text(to_json(COMPARISON.to_dict()))
    assert EngineComparison.read(file) == COMPARISON
    table = COMPARISON.to_pandas()
    assert table[["engine", "model", "batch"]].to_numpy().tolist() == [
        [engine, model, batch]
        for engine, batches in (("transformers", (1, 8)), ("llama.cpp", (1,)))
        for batch in batches
        for model in ("dense", "pruned")
    ]
