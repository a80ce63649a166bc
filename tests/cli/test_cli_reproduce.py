"""`numprune reproduce` on tiny models, against the package's own steps."""

import csv
import json
from dataclasses import replace

import pytest
from architectures import make_tokenizer, tiny_model

import numprune
from numprune import CalibrationRecipe, Recipe
from numprune.cli import main
from numprune.evaluation.images.features import METRICS
from numprune.evaluation.images.inception import INCEPTION, Inception
from numprune.evaluation.images.judge import panel_of
from numprune.evaluation.images.quality import image_quality
from numprune.evaluation.paper import PROTOCOLS, PaperModel

SMALL = ("--samples", "4", "--sequence-length", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama on disk."""
    target = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny_model("llama", tokenizer=make_tokenizer()).save(target)
    return target


@pytest.fixture
def texts(tmp_path):
    names = []
    for name, animal in (("calibration", "cat"), ("held", "dog"), ("other", "bird")):
        names.append(tmp_path / f"{name}.txt")
        names[-1].write_text(f"the {animal} sat on the mat and ran to the {animal} . " * 20)
    return names


@pytest.fixture
def run(capsys):
    def call(*argv):
        capsys.readouterr()
        code = main(["reproduce", *map(str, argv)])
        return code, *capsys.readouterr()

    return call


def known(monkeypatch, table, model, values, **changes):
    """Put a tiny model into a table of the paper, with these figures of its method at 0.2."""
    config = {"model_type": model.config.model_type, "hidden_size": model.config.hidden_size}
    entry = PaperModel("Tiny", "nobody/tiny", config, values[0], {("paper", 0.2): values[1]}, **changes)
    monkeypatch.setitem(PROTOCOLS, table, replace(PROTOCOLS[table], models=(entry,), by_default=1))


def test_table_1_is_what_the_single_steps_give(run, folder, texts, tmp_path, monkeypatch):
    calibration, held, other = texts
    model = numprune.load(folder, device="cpu")
    known(monkeypatch, "table1", model, ({held.name: 90.0}, {held.name: 100.0}))
    flags = ("--model", folder, *SMALL, "--calibration", calibration, "--data", f"{held},{other}")
    flags += ("--methods", "paper,wanda_sp", "--ratios", "0.2", "--out", tmp_path / "out")
    code, out, err = run("table1", *flags, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["paper_model"] == "Tiny"
    rows = {(row["method"], row["measure"]): row for row in result["rows"]}
    assert len(rows) == 3 * 2
    stats = numprune.calibrate(model, calibration, samples=4, sequence_length=32)
    models = {"dense": model}
    for name in ("paper", "wanda_sp"):
        recipe = numprune.preset(name).applied(Recipe(ratio=0.2))
        plan = numprune.allocate(numprune.score(model, stats, scorer=recipe.scorer), recipe)
        models[name] = numprune.prune(model, plan, stats)
    for name, pruned in models.items():
        for text in (held, other):
            row = rows[name, text.name]
            assert row["ours"] == float(numprune.perplexity(pruned, text, sequence_length=32))
            assert row["parameters"] == pruned.parameters
    for name, printed in (("dense", 90.0), ("paper", 100.0)):
        row = rows[name, held.name]
        assert (row["paper"], row["difference"]) == (printed, row["ours"] - printed)
        assert rows[name, other.name]["paper"] is None
    assert rows["wanda_sp", held.name]["difference"] is None
    with (tmp_path / "out" / "tiny-llama.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert [row["ours"] for row in kept] == [repr(row["ours"]) for row in result["rows"]]
    assert [row["paper"] for row in kept if row["method"] == "wanda_sp"] == ["", ""]


def test_the_output_names_what_is_not_the_papers(run, folder, texts, tmp_path):
    calibration, held, _ = texts
    flags = ("--model", folder, *SMALL, "--calibration", calibration, "--data", held, "--methods", "random")
    code, out, err = run("table1", *flags, "--ratios", "0.4", "--out", tmp_path / "out")
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("Not the paper's protocol: "))
    for words in (
        f"calibration {calibration} instead of wikitext2",
        "4 calibration samples instead of 128",
        "32 tokens per window instead of 2,048",
        f"{held.name} is not among its texts",
        "table 1 has no ratio 0.4",
    ):
        assert words in line
    assert "is none of the models of table 1 (LLaMA-7B" in out
    page = (tmp_path / "out" / "tiny-llama.html").read_text()
    assert "4 calibration samples instead of 128" in page
    assert page.count("plotly.js v") == 1
    assert "excess loss on" in page


def test_the_papers_curves_are_in_the_page(run, folder, texts, tmp_path, monkeypatch):
    from numprune.evaluation import reproduction

    calibration, held, other = texts
    known(monkeypatch, "table1", numprune.load(folder), ({held.name: 90.0}, {held.name: 100.0}))
    monkeypatch.setattr(reproduction, "TEXTS", (held.name,))
    flags = ("--model", folder, *SMALL, "--calibration", calibration, "--data", f"{held},{other}")
    assert run("table1", *flags, "--methods", "paper", "--ratios", "0.2", "--out", tmp_path)[0] == 0
    assert (tmp_path / "tiny-llama.html").read_text().count('"name":"numerical pruning, paper"') == 1


def test_a_stopped_run_goes_on(run, folder, texts, tmp_path):
    calibration, held, _ = texts
    flags = ("--model", folder, *SMALL, "--calibration", calibration, "--data", held, "--methods", "random")
    flags += ("--out", tmp_path / "out", "--json")
    cells = tmp_path / "out" / "tiny-llama-cells.csv"
    assert run("table1", *flags, "--ratios", "0.1")[0] == 0
    first = cells.read_text()
    code, out, err = run("table1", *flags, "--ratios", "0.1,0.2")
    assert code == 0, err
    assert cells.read_text().startswith(first)
    assert [row["ratio"] for row in json.loads(out)["rows"]] == [0, 0.1, 0.2]
    # What was measured before but not asked for now is not in the table.
    assert [row["ratio"] for row in json.loads(run("table1", *flags, "--ratios", "0.2")[1])["rows"]] == [0, 0.2]
    code, _, err = run("table1", *flags, "--ratios", "0.1", "--samples", "5")
    assert code == 2
    assert "write to another file" in err


def test_table_3_with_the_models_own_judge_is_compared_with_nothing(run, images_folder, tmp_path, monkeypatch):
    model = numprune.load(images_folder, device="cpu")
    known(monkeypatch, "table3", model, ({"fid": 2.0}, {"fid": 3.0}), guidance=1.5)
    flags = ("--model", images_folder, "--samples", "6", "--images", "8", "--methods", "paper", "--ratios", "0.2")
    code, out, err = run("table3", *flags, "--device", "cpu", "--out", tmp_path, "--json")
    assert code == 0, err
    result = json.loads(out)
    panel = panel_of(model)
    settings = {"cfg_scale": 1.5, "top_k": 0}
    expected = image_quality(model, 8, panel, panel.reference, METRICS, **settings).metrics.values
    dense = {row["measure"]: row for row in result["rows"] if row["method"] == "dense"}
    assert {name: row["ours"] for name, row in dense.items()} == pytest.approx(expected, rel=1e-5)
    assert all(row["paper"] is None for row in result["rows"])
    assert any("own judge instead of Inception" in note for note in result["notes"])
    assert any("8 images drawn instead of 50,000" in note for note in result["notes"])


def test_table_3_with_inception_stands_beside_the_paper(run, images_folder, tmp_path, monkeypatch):
    model = numprune.load(images_folder, device="cpu")
    known(monkeypatch, "table3", model, ({"fid": 2.0}, {"fid": 3.0}), guidance=1.5)
    panel = panel_of(model)
    sizes = []

    class Stub:
        name = INCEPTION

        def __call__(self, images):
            sizes.append(images.shape[-1])
            return panel(images)

    monkeypatch.setattr(Inception, "load", classmethod(lambda cls, device="auto": Stub()))
    reference = replace(panel.reference, extractor=INCEPTION)
    monkeypatch.setattr("numprune.evaluation.images.references.reference_from_npz", lambda *args, **options: reference)
    flags = ("--model", images_folder, "--samples", "6", "--images", "8", "--methods", "paper", "--ratios", "0.2")
    flags += ("--device", "cpu", "--out", tmp_path, "--reference", "real.npz", "--json")
    code, out, err = run("table3", *flags)
    assert code == 0, err
    rows = {(row["method"], row["measure"]): row for row in json.loads(out)["rows"]}
    for method, printed in (("dense", 2.0), ("paper", 3.0)):
        row = rows[method, "fid"]
        assert (row["paper"], row["difference"]) == (printed, row["ours"] - printed)
    assert set(sizes) == {256}
    stats = numprune.calibrate(model, "self", samples=6, sequence_length=577)
    plan = numprune.allocate(numprune.score(model, stats), Recipe(ratio=0.2, calibration=CalibrationRecipe("self", 6)))
    pruned = numprune.prune(model, plan, stats)
    from numprune.evaluation.reproduction import Resized

    seen = image_quality(pruned, 8, Resized(Stub()), reference, METRICS, cfg_scale=1.5, top_k=0).metrics.values
    assert {name: rows["paper", name]["ours"] for name in METRICS} == pytest.approx(seen, rel=1e-5)
    assert "FID" in (tmp_path / "images.html").read_text()


def test_figure_5_measures_size_and_speed_and_goes_on(run, texts, tmp_path):
    target = tmp_path / "longer"
    tiny_model("llama", tokenizer=make_tokenizer(), max_position_embeddings=256).save(target)
    flags = ("--model", target, *SMALL, "--calibration", texts[0], "--repetitions", "1", "--new-tokens", "2")
    flags += ("--out", tmp_path / "out", "--json")
    code, out, err = run("figure5", *flags, "--ratios", "0.4")
    assert code == 0, err
    first = json.loads(out)["rows"]
    model = numprune.load(target, device="cpu")
    stats = numprune.calibrate(model, texts[0], samples=4, sequence_length=32)
    plan = numprune.allocate(numprune.score(model, stats), Recipe(ratio=0.4))
    sizes = numprune.sizes(model, plan)
    dense, pruned = first
    assert (dense["ratio"], dense["parameters"]) == (0, model.parameters)
    assert (pruned["parameters"], pruned["weights"], pruned["kv"]) == (sizes.parameters, sizes.bytes, sizes.kv_bytes)
    assert (pruned["prompt_tokens"], pruned["new_tokens"], pruned["repetitions"]) == (64, 2, 1)
    assert pruned["decode_low"] <= pruned["decode"] <= pruned["decode_high"]
    code, out, _ = run("figure5", *flags, "--ratios", "0.2,0.4")
    again = json.loads(out)
    assert [row["ratio"] for row in again["rows"]] == [0, 0.2, 0.4]
    assert [again["rows"][0]["decode"], again["rows"][2]["decode"]] == [row["decode"] for row in first]
    assert any("is not LLaMA-7B" in note for note in again["notes"])
    assert "plotly" in (tmp_path / "out" / "longer.html").read_text()
    code, _, err = run("figure5", *flags, "--new-tokens", "3")
    assert code == 2
    assert "another model, device or settings" in err
    code, out, _ = run("figure5", *flags[:-1], "--ratios", "0.4")
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["ratio", "0", "0.4"]


def test_texts_of_one_name_are_refused(run, folder, texts, tmp_path):
    _, held, _ = texts
    (tmp_path / "elsewhere").mkdir()
    twin = tmp_path / "elsewhere" / held.name
    twin.write_text("another text")
    flags = ("--model", folder, *SMALL, "--calibration", held, "--data", f"{held},{twin}", "--out", tmp_path / "out")
    code, _, err = run("table1", *flags)
    assert code == 2
    assert "names two texts alike (held.txt, held.txt)" in err


@pytest.mark.parametrize(
    ("name", "wanted"), [("table1", "LLaMA-7B"), ("table3", "LlamaGen-XXL"), ("figure5", "LLaMA-7B")]
)
def test_without_the_weights_the_exit_code_is_3_and_they_are_named(run, name, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(name)
    assert code == 3
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"needs the weights of {wanted}: get " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("table1", "--images", "9"), "--images belongs to table3"),
        (("table3", "--data", "ptb"), "--data belongs to table1"),
        (("figure5", "--methods", "flap"), "figure5 is of the paper's own method"),
        (("table1", "--methods", "no-such"), "preset 'no-such' is not known"),
        (("table1", "--ratios", "a"), "ratios is 'a'"),
        (("table1", "--ratios", "1.5"), "1.5"),
        (("table1", "--samples", "0"), "--samples is 0; give at least 1"),
        (("table1", "--new-tokens", "3"), "--new-tokens belongs to figure5"),
    ],
)
def test_flags_that_do_not_fit_are_refused(run, argv, says):
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert says in err


def test_models_of_the_other_kind_are_refused(run, folder, images_folder, tmp_path):
    for name, model, says in (
        ("table1", images_folder, "draws images; table 1 is of language models"),
        ("table3", folder, "writes text; table 3 is of image models"),
    ):
        code, _, err = run(name, "--model", model, "--device", "cpu", "--out", tmp_path / "out")
        assert code == 2
        assert says in err


def test_an_image_model_without_a_judge_needs_a_reference(run, tmp_path):
    tiny_model("llamagen").save(tmp_path / "bare")
    code, _, err = run("table3", "--model", tmp_path / "bare", "--device", "cpu", "--out", tmp_path / "out")
    assert code == 2
    assert "give --reference with ADM's VIRTUAL_imagenet256_labeled.npz" in err
