from dataclasses import replace

import httpx2
import pytest
import torch
import yaml
from architectures import random_ids, random_scores, tiny_model
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from numprune import InputError, NumpruneError, Recipe, allocate, calibrate, load, perplexity, prune
from numprune.cli import main
from numprune.export import hub, model_card, push_to_hub
from numprune.plan.recipe import COMPENSATIONS, CalibrationRecipe

TOKEN = "hf_abcSECRETdef"


class StandIn:
    """What HfApi is asked, with the files as they were uploaded."""

    def __init__(self):
        self.calls, self.files, self.error = [], {}, None

    def __call__(self):
        return self

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        if self.error is not None:
            raise self.error
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, folder_path, **options):
        self.calls.append(("upload_folder", options.pop("repo_id"), options))
        self.folder = folder_path
        self.files = {
            str(file.relative_to(folder_path)): file.read_bytes() for file in folder_path.rglob("*") if file.is_file()
        }


@pytest.fixture
def api(monkeypatch):
    api = StandIn()
    monkeypatch.setattr(hub, "HfApi", api)
    return api


@pytest.fixture
def pruned(model, stats):
    result = prune(model, allocate(random_scores(model), Recipe(ratio=0.4)), stats)
    calibration = CalibrationRecipe(data="/home/ada/private/diary.txt", samples=8)
    result.recipe = result.recipe.replace(model="ada/dense", calibration=calibration)
    return result


def refusal(status):
    request = httpx2.Request("POST", "https://huggingface.co", headers={"authorization": f"Bearer {TOKEN}"})
    return HfHubHTTPError(f"status {status}", response=httpx2.Response(status, request=request))


def test_uploads_what_transformers_opens_with_its_card(pruned, api, tmp_path):
    assert push_to_hub(pruned, "ada/smaller", token=TOKEN) == "https://huggingface.co/ada/smaller"
    (_, created, how), (_, uploaded, what) = api.calls
    assert (created, uploaded) == ("ada/smaller", "ada/smaller")
    assert how == {"token": TOKEN, "private": True, "exist_ok": True}
    assert what["token"] == TOKEN
    assert not api.folder.exists()
    for name, content in api.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    ids = random_ids(2, 9)
    again = load(tmp_path, device="cpu").module
    assert torch.equal(again(input_ids=ids).logits, pruned.module(input_ids=ids).logits)


def test_neither_the_token_nor_folders_of_this_machine_are_in_any_file(pruned, api):
    pruned.name = "/home/ada/private/model"
    for format in ("transformers", "numprune"):
        push_to_hub(pruned, "ada/smaller", format=format, token=TOKEN)
        assert {"README.md", "config.json", "recipe.json", "report.json"} <= api.files.keys()
        everything = b"".join(api.files.values())
        assert TOKEN.encode() not in everything
        assert b"private" not in everything
        assert b"diary.txt" in everything
    assert pruned.name == "/home/ada/private/model"
    assert pruned.recipe.calibration.data == "/home/ada/private/diary.txt"


def test_an_image_model_goes_as_one_file_beside_its_card(api):
    model = tiny_model("llamagen", rms_norm_eps=1e-5)
    push_to_hub(model, "ada/images", format="llamagen", private=False)
    assert api.files.keys() == {"README.md", "images.pt"}
    assert api.calls[0][2] == {"token": None, "private": False, "exist_ok": True}
    card = api.files["README.md"].decode()
    assert "hf download ada/images --local-dir images" in card
    assert 'torch.load("images/images.pt"' in card


@pytest.mark.parametrize(
    ("error", "token", "says"),
    [
        (refusal(401), TOKEN, "does not know this token"),
        (refusal(401), None, "without a token; give one"),
        (refusal(403), TOKEN, "may not write to ada/smaller"),
        (refusal(500), TOKEN, "with status 500"),
        (httpx2.ConnectError("Name or service not known"), TOKEN, r"was not reached \(ConnectError\)"),
        (OfflineModeIsEnabled("offline mode"), TOKEN, r"was not reached \(OfflineModeIsEnabled\)"),
        (httpx2.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN} '"), TOKEN, "LocalProtocolError"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_without_the_token(pruned, api, error, token, says):
    api.error = error
    with pytest.raises(NumpruneError, match=says) as caught:
        push_to_hub(pruned, "ada/smaller", token=token)
    message = str(caught.value)
    assert message.endswith(".")
    assert message.count(". ") == 0
    assert TOKEN not in message
    # A traceback shows no cause that could quote a request.
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    assert not api.files


@pytest.mark.parametrize("name", ["", "a/b/c", "ada/sm aller", "ada/..", "ada/x.git"])
def test_a_name_that_is_none_of_a_repository_is_refused_before_anything_is_written(pruned, api, name):
    with pytest.raises(InputError, match="OWNER/NAME"):
        push_to_hub(pruned, name)
    assert not api.calls


def test_a_format_that_cannot_carry_the_model_is_refused_before_the_hub_is_asked(pruned, api):
    with pytest.raises(InputError, match="not a LlamaGen decoder"):
        push_to_hub(pruned, "ada/smaller", format="llamagen")
    assert not api.calls


def test_the_card_says_how_it_was_pruned_and_what_that_cost(model, pruned):
    before, after = (perplexity(each, random_ids(6, 20), sequence_length=10) for each in (model, pruned))
    card = model_card(
        pruned, perplexity_before=before, perplexity_after=after, perplexity_data="wikitext2", repo_id="ada/smaller"
    )
    _, front, body = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["base_model"] == "ada/dense"
    assert front["library_name"] == "transformers"
    assert {"numprune", "pruned"} <= set(front["tags"])
    report = pruned.report
    error = before * before.standard_error
    for expected in (
        "# smaller\n",
        f"| parameters | {report.parameters_before:,} | {report.parameters_after:,} |",
        f"| perplexity | {before:.2f} ± {error:.2f} | {after:.2f} ±",
        f"{before.tokens:,} tokens of wikitext2",
        "on CPU in float32",
        f"{report.ratio_reached:.1%} of the prunable parameters were removed (40.0% were asked for)",
        "calibration: diary.txt, 8 x 2048 tokens, seed 0",
        'AutoModelForCausalLM.from_pretrained("ada/smaller", trust_remote_code=True)',
        "numprune export ada/smaller --format onnx --out smaller-onnx",
        "2412.12441",
    ):
        assert expected in body
    units = pruned.units()
    assert f"| 1 | {units[(1, 'attention')]} | {units[(1, 'mlp')]} |" in body
    recipe = body.split("```json\n")[1].split("```")[0]
    assert Recipe.from_json(recipe) == pruned.recipe.replace(calibration=CalibrationRecipe(data="diary.txt", samples=8))


@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_a_card_has_words_for_every_compensation(pruned, compensation):
    card = model_card(replace(pruned, recipe=pruned.recipe.replace(compensation=compensation)))
    line = next(line for line in card.splitlines() if line.startswith("- compensation: "))
    assert f"(`{compensation}`, damping" in line


def test_perplexities_of_different_tokens_are_not_set_side_by_side(model, pruned):
    before = perplexity(model, random_ids(6, 20))
    after = perplexity(pruned, random_ids(5, 20))
    with pytest.raises(InputError, match="not measured on the same tokens"):
        model_card(pruned, perplexity_before=before, perplexity_after=after)


def test_the_card_of_a_dense_model_claims_no_pruning(model):
    card = model_card(model)
    assert "pruned" not in yaml.safe_load(card.split("---\n")[1])["tags"]
    assert "How it was pruned" not in card
    assert f"{model.parameters:,}" in card


def test_the_command_line_measures_both_models_and_uploads(tmp_path, api, capsys):
    text = tmp_path / "held-out.txt"
    text.write_text("Once upon a time there was a little dog. It ran to the park and saw a red ball. " * 3)
    model = load("tiny-stories", device="cpu", dtype="checkpoint")
    stats = calibrate(model, random_ids(4, 32), samples=4, sequence_length=32)
    smaller = prune(model, allocate(random_scores(model), Recipe(ratio=0.3)), stats)
    smaller.save(tmp_path / "smaller")
    code = main(
        ["export", str(tmp_path / "smaller"), "--push-to-hub", "ada/smaller", "--perplexity", str(text), "--quiet"]
    )
    assert code == 0
    assert "https://huggingface.co/ada/smaller" in capsys.readouterr().out
    row = next(line for line in api.files["README.md"].decode().splitlines() if "| perplexity" in line)
    dense = perplexity(model, text)
    assert f"| {float(dense):.2f}" in row
    assert row.count("|") == 4
    assert main(["export", "tiny-stories", "--out", str(tmp_path / "a"), "--perplexity", str(text)]) == 2
