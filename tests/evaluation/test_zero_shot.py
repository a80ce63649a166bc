"""Accuracy through lm-eval, against log-likelihoods of our own forward pass on a task of our own."""

import json
import sys

import pytest
import torch
from architectures import tiny_model

import numprune
from numprune import Cancelled, InputError, Recipe, ZeroShot, zero_shot
from numprune.cli import main

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'numprune[eval]')")
import datasets

PETS = [
    {"question": f"Where is the {animal}? The {animal}", "choices": choices, "answer": index % len(choices)}
    for index, animal in enumerate(["cat", "dog", "fox", "bear", "duck", "mouse", "frog", "hen"])
    for choices in (["is on the mat.", "ran away", "sat"], ["sleeps", "went to the end of the road and on"])
]
SUMS = [{"question": f"{a} and {b}", "answer": str(a + b)} for a, b in ((1, 2), (3, 4), (5, 1))]

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {file}, validation: {file}}}}}
tag: everything
validation_split: validation
training_split: train
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """\
output_type: multiple_choice
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metrics}]
"""
WRITTEN = """\
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
GROUP = """\
group: animals
task: [pets, plain]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
ZOO = """\
group: zoo
task: [animals]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three tasks, a group of two of them, a group of that group as MMLU is one, and a task whose data is lost."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, rows in (("pets", PETS), ("plain", PETS[:5]), ("sums", SUMS)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        metric = "{{metric: {}, aggregation: mean, higher_is_better: true}}"
        metrics = [metric.format(each) for each in (["acc", "acc_norm"] if name == "pets" else ["acc"])]
        body = WRITTEN if name == "sums" else CHOICE.format(metrics=", ".join(metrics))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, file=tmp_path / f"{name}.jsonl") + body)
    (tmp_path / "animals.yaml").write_text(GROUP)
    (tmp_path / "zoo.yaml").write_text(ZOO)
    (tmp_path / "lost.yaml").write_text(
        TASK.format(name="lost", file=tmp_path / "lost.jsonl") + CHOICE.format(metrics="{metric: acc}")
    )
    return tmp_path


@pytest.fixture
def pruned(model, stats):
    plan = numprune.allocate(numprune.score(model, stats), Recipe(ratio=0.4))
    return numprune.prune(model, plan, stats)


@torch.no_grad()
def log_likelihood(model, context, continuation):
    """log p(continuation | context), token by token, after BOS."""
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    whole, known = encode(context + continuation), len(encode(context))
    if known == 0:
        whole, known = [model.tokenizer.bos_token_id, *whole], 1
    logits = model.module(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logits[place - 1, whole[place]]) for place in range(known, len(whole)))


def by_hand(model, rows, *, normalised):
    """Share of rows whose likeliest continuation is the answer; a choice is continued after a space."""
    right = 0
    for row in rows:
        values = [log_likelihood(model, row["question"], f" {choice}") for choice in row["choices"]]
        if normalised:
            values = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        right += max(range(len(values)), key=values.__getitem__) == row["answer"]
    return right / len(rows)


@pytest.mark.parametrize("which", ["model", "pruned"])
def test_accuracy_is_that_of_our_own_log_likelihoods(which, folder, request):
    model = request.getfixturevalue(which)
    result = zero_shot(model, ["pets", "plain"], include=folder)
    assert isinstance(result, ZeroShot)
    pets, plain = result.scores
    assert (pets.task, pets.metric, pets.n, pets.shots) == ("pets", "acc_norm", len(PETS), 0)
    assert pets.value == by_hand(model, PETS, normalised=True)
    assert (plain.metric, plain.n) == ("acc", 5)
    assert plain.value == by_hand(model, PETS[:5], normalised=False)
    assert 0 < pets.value < 1
    # Of a share p of n examples, with n - 1.
    assert pets.stderr == pytest.approx((pets.value * (1 - pets.value) / (pets.n - 1)) ** 0.5)
    assert result.mean == (pets.value + plain.value) / 2
    assert result["plain"] is plain
    assert result.harness.startswith("lm-eval 0.")


def test_limit_takes_the_first_examples(model, folder):
    result = zero_shot(model, ["pets"], include=folder, limit=3)
    assert (result.limit, result["pets"].n) == (3, 3)
    assert result["pets"].value == by_hand(model, PETS[:3], normalised=True)
    assert zero_shot(model, ["pets"], include=folder, limit=1)["pets"].stderr is None


def test_shots_stand_before_the_question(tokenizer, folder):
    model = tiny_model("llama", tokenizer=tokenizer, max_position_embeddings=512)
    result = zero_shot(model, ["plain"], include=folder, shots=2, limit=4)
    assert result["plain"].shots == 2
    prompts = set()

    class Spy(type(tokenizer)):
        def encode(self, text, **options):
            prompts.add(text)
            return super().encode(text, **options)

    model.tokenizer = Spy.from_pretrained(saved(tokenizer, folder))
    zero_shot(model, ["plain"], include=folder, shots=2, limit=1)
    assert prompts
    assert all(prompt.count("Where is the") == 3 for prompt in prompts)


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def test_a_group_has_one_score_of_all_its_examples(model, folder):
    animals, zoo = zero_shot(model, ["animals", "zoo"], include=folder).scores
    parts = zero_shot(model, ["pets", "plain"], include=folder)
    right = by_hand(model, PETS, normalised=False) * len(PETS) + parts["plain"].value * 5
    assert (animals.task, animals.metric, animals.n) == ("animals", "acc", len(PETS) + 5)
    assert animals.value == pytest.approx(right / animals.n)
    assert (zoo.task, zoo.value, zoo.n) == ("zoo", animals.value, animals.n)


def test_a_tag_gives_a_score_for_each_of_its_tasks(model, folder):
    (folder / "lost.yaml").unlink()
    result = zero_shot(model, ["everything"], include=folder, limit=2)
    assert {score.task: score.n for score in result.scores} == {"pets": 2, "plain": 2, "sums": 2}


def test_written_answers_are_those_the_model_writes(model, pruned, folder):
    for each in (model, pruned):
        right = 0
        for row in SUMS:
            ids = torch.tensor([each.tokenizer(row["question"], add_special_tokens=False)["input_ids"]])
            begin = ids.shape[1]
            for _ in range(4):
                with torch.no_grad():
                    ids = torch.cat([ids, each.module(ids).logits[:, -1:].argmax(-1)], dim=1)
            right += each.tokenizer.decode(ids[0, begin:], skip_special_tokens=True).split(".")[0] == row["answer"]
        result = zero_shot(each, ["sums"], include=folder)
        assert (result["sums"].metric, result["sums"].value) == ("exact_match", right / 3)


def test_batches_do_not_matter(model, folder):
    values = {zero_shot(model, ["pets"], include=folder, batch_size=size)["pets"].value for size in (1, 5)}
    assert len(values) == 1


def test_the_model_and_its_tokenizer_are_left_in_peace(model, dense_state, folder):
    model.tokenizer.pad_token = None
    zero_shot(model, ["pets"], include=folder)
    assert model.tokenizer.pad_token is None
    state = model.module.state_dict()
    assert all(torch.equal(state[name], dense_state[name]) for name in dense_state)


def test_a_result_is_plain_data(model, folder):
    result = zero_shot(model, ["pets"], include=folder, limit=2)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["scores"][0]["task"] == "pets"
    assert plain["mean"] == result.mean
    assert list(result.to_pandas().columns) == ["task", "metric", "value", "stderr", "n", "shots"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": []}, "no task to measure"),
        ({"limit": 0}, "limit is 0; give at least 1"),
        ({"shots": -1}, "shots is -1; give at least 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"include": "nowhere"}, "nowhere is no folder"),
        ({"tasks": ["lost"]}, "data of task lost cannot be had"),
    ],
)
def test_wrong_arguments_are_refused(model, folder, options, says):
    with pytest.raises(InputError, match=says):
        zero_shot(model, **{"tasks": ["pets"], "include": folder, **options})


def test_an_unknown_task_is_named(model):
    with pytest.raises(InputError, match="Task 'no-such-task' is not known to lm-eval"):
        zero_shot(model, ["no-such-task"])


def test_models_that_cannot_read_are_refused(folder):
    with pytest.raises(InputError, match="draws images"):
        zero_shot(tiny_model("llamagen"), ["pets"], include=folder)
    with pytest.raises(InputError, match="no tokenizer"):
        zero_shot(tiny_model("llama"), ["pets"], include=folder)


def test_without_lm_eval_the_installation_is_named(model, folder, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'numprune\[eval\]'"):
        zero_shot(model, ["pets"], include=folder)


def test_a_stop_ends_within_a_task(model, folder):
    class Event:
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked > 2

    with pytest.raises(Cancelled):
        zero_shot(model, ["pets"], include=folder, batch_size=1, cancel=Event())


@pytest.fixture
def saved_models(model, pruned, tmp_path):
    model.save(tmp_path / "dense")
    pruned.save(tmp_path / "pruned")
    return tmp_path / "dense", tmp_path / "pruned"


def test_the_command_line_measures_dense_and_pruned(saved_models, folder, capsys, model, pruned):
    argv = ["eval", *map(str, saved_models), "--tasks", "pets,plain", "--include", str(folder), "--device", "cpu"]
    assert main([*argv, "--json"]) == 0
    dense, smaller = json.loads(capsys.readouterr().out)
    for found, expected in ((dense, model), (smaller, pruned)):
        assert found["parameters"] == expected.parameters
        assert [score["value"] for score in found["scores"]] == [
            by_hand(expected, PETS, normalised=True),
            by_hand(expected, PETS[:5], normalised=False),
        ]
    assert main([*argv, "--limit", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head, pets, *_, mean, about = out.splitlines()
    assert head.split() == ["task", "metric", "shots", "n", str(saved_models[0]), "%", str(saved_models[1]), "%"]
    assert pets.split()[:4] == ["pets", "acc_norm", "0", "4"]
    assert mean.split()[0] == "mean"
    assert about.startswith("lm-eval 0.")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--limit", "3"], "--limit needs --tasks"),
        (["--include", "x"], "--include needs --tasks"),
        (["--tasks", "pets", "--speed"], "leave out --data, --max-tokens, --stride and --speed"),
        (["--tasks", "pets", "--max-tokens", "9"], "leave out --data, --max-tokens"),
        (["--tasks", "pets", "--images", "5"], "--images measures image models"),
        (["--tasks", "pets", "--guidance", "2"], "--guidance needs --images"),
    ],
)
def test_flags_that_do_not_fit_are_refused(saved_models, flags, says, capsys):
    assert main(["eval", str(saved_models[0]), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_paper_stands_for_its_seven_tasks(saved_models, monkeypatch, capsys):
    asked = []

    def remember(model, tasks, **options):
        asked.append((tasks, options))
        raise InputError("enough")

    monkeypatch.setattr(numprune, "zero_shot", remember)
    assert main(["eval", str(saved_models[0]), "--tasks", "paper,mmlu", "--shots", "5"]) == 2
    ((tasks, options),) = asked
    assert tasks == [*numprune.PAPER_TASKS, "mmlu"]
    assert len(numprune.PAPER_TASKS) == 7
    assert options["shots"] == 5
