"""What numprune 0.1 wrote before the engine was rearranged: recipes and folders in `fixtures`, made by its own code."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import numprune
from numprune import Recipe

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The fixtures in the working folder, where the recipes look for their model and text."""
    for item in FIXTURES.iterdir():
        (shutil.copytree if item.is_dir() else shutil.copy)(item, tmp_path / item.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["paper", "network"])
def test_folders_open_with_their_history(written, name):
    model = numprune.load(name, device="cpu")
    assert model.recipe == Recipe.read(written / name / "recipe.json")
    assert model.report.to_dict() == json.loads((written / name / "report.json").read_text())
    saved = json.loads((written / name / "numprune.json").read_text())["units"]
    assert {str(key): count for key, count in model.units().items()} == saved


@pytest.mark.parametrize("name", ["paper", "network"])
def test_recipes_give_the_same_model_again(written, name, run):
    """Bit for bit on the machine they were made on; elsewhere sums may be rounded otherwise."""
    code, _, err = run("prune", "--recipe", f"{name}/recipe.json", "--out", "again", "--device", "cpu", "--quiet")
    assert code == 0, err
    before, after = (numprune.load(folder, device="cpu") for folder in (name, "again"))
    expected, state = before.module.state_dict(), after.module.state_dict()
    assert state.keys() == expected.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4 * float(expected[key].abs().max()))
    changed = {"fingerprint": after.recipe.fingerprint}
    assert after.recipe == before.recipe.replace(**changed)
