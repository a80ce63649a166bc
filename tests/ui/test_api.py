"""The dashboard driven by gradio_client, as a program would."""

import base64
import io
import socket
import time
import zipfile

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from servers import program, served

import numprune
from numprune.calibration.data import documents
from numprune.evaluation.images.judge import panel_of
from numprune.ui import app
from numprune.ui.serving import Policy
from numprune.ui.workbench import Workbench

# More tokens than channels: scores from a singular Gram matrix would follow the last bits of rounding.
SMALL = {"samples": 32, "sequence_length": 64}


@pytest.fixture(scope="module")
def client(small_url):
    opened = Client(small_url, verbose=False)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def facts(client):
    return client.predict(model="tiny-stories", **SMALL, api_name="/load")


def test_the_program_that_the_readme_starts_answers(tmp_path, images_folder):
    with program(tmp_path, "--model", str(images_folder)) as address:
        started = Client(address, verbose=False)
        facts = started.predict(model=str(images_folder), samples=8, api_name="/load")
        assert facts["parameters"] == numprune.load(images_folder).parameters
        started.close()


def test_nothing_of_a_closed_tab_is_kept(monkeypatch):
    """Neither by the workbench nor by Gradio, which keeps what a page showed."""
    made, compose = [], app.compose
    monkeypatch.setattr(app, "compose", lambda bench: made.append(compose(bench)) or made[-1])
    bench = Workbench(numprune.load("tiny-stories", device="cpu"))
    with served(bench) as address:
        tab, stays = Client(address, verbose=False), Client(address, verbose=False)
        for each in (tab, stays):
            recipe = each.predict(model="tiny-stories", samples=4, sequence_length=32, api_name="/load")["recipe"]
            each.predict(recipe=recipe, name="smaller", api_name="/prune")
        shown = made[0][0].state_holder
        assert {tab.session_hash, stays.session_hash} <= shown.session_data.keys()
        tab.close()
        deadline = time.monotonic() + 180
        while tab.session_hash in shown.session_data and time.monotonic() < deadline:
            time.sleep(0.1)
        assert tab.session_hash not in shown.session_data.keys() | shown.time_last_used.keys()
        assert stays.session_hash in shown.session_data
        assert (bench.variants(tab.session_hash), list(bench.variants(stays.session_hash))) == ({}, ["smaller"])
        stays.close()


def test_load_tells_what_was_loaded(facts):
    assert facts["layers"] == 8
    assert facts["parameters"] == 3_935_424
    assert facts["recipe"]["calibration"] == {"data": "self", "seed": 0, "bos": True, **SMALL}


def test_score_gives_every_unit(client, facts):
    scores = client.predict(recipe=facts["recipe"], api_name="/score")
    assert len(scores) == 16
    assert {len(units) for units in scores.values()} == {8, 512}


def test_prune_and_compare_repeat_what_the_package_does(client, facts, monkeypatch):
    # On the server, which runs in this process.
    few = documents(numprune.held_out_text(), "test")[:8]
    monkeypatch.setattr("numprune.ui.comparison.held_out_text", lambda: few)
    recipe = facts["recipe"] | {"ratio": 0.25}
    done = client.predict(recipe=recipe, name="mine", api_name="/prune")
    assert done["name"] == "mine"
    own = numprune.Recipe.from_dict(recipe)
    model = numprune.load("tiny-stories")
    stats = numprune.calibrate(model, "self", **SMALL)
    plan = numprune.allocate(numprune.score(model, stats), own)
    assert done["kept"] == {str(key): len(kept) for key, kept in plan.keep.items()}
    assert done["report"]["parameters_after"] == plan.parameters_after

    both = client.predict(
        recipe=recipe, name="mine", prompt="Once upon a time", max_new_tokens=8, seed=3, api_name="/compare"
    )
    dense = numprune.generate(model, ["Once upon a time"], max_new_tokens=8, seed=3)
    assert both["dense"]["texts"] == dense
    assert both["pruned"]["parameters"] == plan.parameters_after
    assert both["dense"]["perplexity"] < both["pruned"]["perplexity"]


def test_export_gives_a_file_that_loads(client, facts, tmp_path):
    done = client.predict(recipe=facts["recipe"] | {"ratio": 0.25}, name="sent", api_name="/prune")
    out = client.predict(recipe=facts["recipe"], name=done["name"], format="transformers", api_name="/export")
    with zipfile.ZipFile(out["file"]) as archive:
        assert out["bytes"] == sum(entry.file_size for entry in archive.infolist())
        archive.extractall(tmp_path)
    assert 'from_pretrained("tiny-stories-sent"' in out["snippet"]
    model = numprune.load(tmp_path / "tiny-stories-sent")
    assert model.parameters == done["report"]["parameters_after"]
    with pytest.raises(AppError, match="Format 'tar' is not known"):
        client.predict(recipe=facts["recipe"], format="tar", api_name="/export")
    with pytest.raises(AppError, match="no option 'colour'"):
        client.predict(recipe=facts["recipe"], options={"colour": "red"}, api_name="/export")


def test_an_image_model_draws(client, images_folder):
    facts = client.predict(model=str(images_folder), samples=8, api_name="/load")
    client.predict(recipe=facts["recipe"], name="small", api_name="/prune")
    drawn = client.predict(recipe=facts["recipe"], name="small", classes=[2, 0], seed=5, guidance=2, api_name="/draw")
    assert list(drawn) == ["dense", "pruned"]
    model = numprune.load(images_folder)
    images = model.decode(model.generate([2, 0], seed=5, cfg_scale=2.0))
    seen = panel_of(model).verdicts(images)
    for index, found in enumerate(drawn["dense"]):
        assert (found["class"], found["seed"]) == (["cow", "ant"][index], 5 + index)
        assert found["seen_as"] == model.class_names[int(seen.classes[index])]
        file = io.BytesIO(base64.b64decode(found["picture"].split(",")[1]))
        expected = (images[index] * 255).round().permute(1, 2, 0)
        assert np.array_equal(np.asarray(Image.open(file)), expected)
    with pytest.raises(AppError, match="use the endpoint draw"):
        client.predict(recipe=facts["recipe"], name="small", prompt="x", api_name="/compare")


def test_errors_reach_the_client_as_sentences(client, facts):
    with pytest.raises(AppError, match="unknown key 'magic'"):
        client.predict(recipe=facts["recipe"] | {"magic": 1}, api_name="/prune")
    with pytest.raises(AppError, match="no-such-model"):
        client.predict(model="no-such-model", **SMALL, api_name="/load")
    with pytest.raises(AppError, match="press Prune"):
        client.predict(recipe=facts["recipe"], name="never made", prompt="x", api_name="/compare")


def test_limits_hold_for_clients_too():
    bench = Workbench(numprune.load("tiny-stories"), policy=Policy(models=("tiny-stories",)))
    with served(bench, auth=("ada", "secret")) as address:
        with pytest.raises(Exception, match=r"(?i)auth|login|credentials"):
            Client(address, verbose=False)
        allowed = Client(address, auth=("ada", "secret"), verbose=False)
        with pytest.raises(AppError, match="may not be loaded here"):
            allowed.predict(model="/etc", **SMALL, api_name="/load")
        with pytest.raises(AppError, match="may not be read"):
            allowed.predict(model="tiny-stories", calibration="/etc/passwd", **SMALL, api_name="/load")
        allowed.close()


def test_a_port_that_is_taken_is_one_sentence_and_an_exit_code(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--port", port)
    assert code == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in err
    assert "Traceback" not in err
