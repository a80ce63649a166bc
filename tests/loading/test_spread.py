"""Models spread over places by accelerate compute what they compute in one place, and leave nothing behind."""

import gc
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, make_tokenizer, random_ids, tiny_model
from safetensors.torch import load_file, save_file

import numprune
from numprune.errors import InputError, NumpruneError
from numprune.plan.keys import ModuleKey

TEXT = [name for name in ARCHITECTURES if not name.startswith("llamagen")]


def saved(name, folder, *, prune=False, **changes):
    """A folder of a tiny model, as transformers writes it; or a pruned one, with layers of different sizes, one of them
    without heads."""
    model = tiny_model(name, tokenizer=make_tokenizer(), **changes)
    if not prune:
        model.module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    else:
        stats = numprune.calibrate(model, random_ids(8, 16), samples=8, sequence_length=16)
        recipe = numprune.preset("flap").applied(numprune.Recipe(ratio=0.3))
        recipe = recipe.replace(ratios={ModuleKey(0, "mlp"): 0.5}, drop=(ModuleKey(1, "attention"),))
        scores = numprune.score(model, stats, scorer=recipe.scorer)
        numprune.prune(model, numprune.allocate(scores, recipe), stats).save(folder)
    return folder


def halves(folder, first="cpu"):
    """A place for every part of a folder's model: every other one stays on the disk."""
    module = numprune.load(folder, device="cpu").module
    owners = [name for name, part in module.named_modules() if part._parameters or part._buffers]
    return {name: "disk" if (number + (first == "disk")) % 2 else "cpu" for number, name in enumerate(owners)}


def places(model):
    return {str(parameter.device) for parameter in model.module.parameters()}


def logits(model):
    with torch.inference_mode():
        return model.module(input_ids=random_ids(2, 12), use_cache=False).logits


@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("name", TEXT)
def test_a_model_half_on_the_disk_is_the_model(name, prune, tmp_path):
    folder = saved(name, tmp_path / "model", prune=prune)
    whole = numprune.load(folder, device="cpu")
    for first in ("cpu", "disk"):
        spread = numprune.load(folder, device_map=halves(folder, first))
        assert places(spread) == {"cpu", "meta"}
        assert spread.device == torch.device("cpu")
        torch.testing.assert_close(logits(spread), logits(whole), rtol=0, atol=0)
        assert spread.parameters == whole.parameters
    assert "GB on disk" in spread.notes[-1]
    greedy = {"temperature": 0, "max_new_tokens": 6}
    assert numprune.generate(spread, ["the", "and then"], **greedy) == numprune.generate(
        whole, ["the", "and then"], **greedy
    )


@pytest.mark.parametrize("strategy", ["auto", "balanced", "balanced_low_0", "sequential"])
@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruned"])
def test_what_does_not_fit_stays_on_the_disk(strategy, prune, tmp_path):
    folder = saved("llama-gqa-tied", tmp_path / "model", prune=prune)
    whole = numprune.load(folder, device="cpu")
    spread = numprune.load(folder, device_map=strategy, max_memory={"cpu": "30KB"})
    assert "meta" in places(spread)
    text = {"sequence_length": 16, "max_tokens": 200}
    texts = ["and the sun " * 30]
    assert numprune.perplexity(spread, texts, **text) == numprune.perplexity(whole, texts, **text)
    roomy = numprune.load(folder, device_map=strategy, max_memory={"cpu": "1GB"})
    assert places(roomy) == {"cpu"}
    assert roomy.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruned"])
def test_weights_on_the_disk_are_computed_with_in_the_type_that_was_asked_for(prune, tmp_path):
    folder = saved("llama", tmp_path / "model", prune=prune)
    spread = numprune.load(folder, dtype="bfloat16", device_map=halves(folder))
    whole = numprune.load(folder, dtype="bfloat16", device="cpu")
    torch.testing.assert_close(logits(spread), logits(whole), rtol=0, atol=0)


def test_the_weights_an_index_names_are_read_from_the_disk_where_a_stray_file_lies_beside(tmp_path, monkeypatch):
    folder = saved("llama", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(tiny_model("llama").module.state_dict(), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    save_file({"stray": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    spread = numprune.load(folder, device_map=halves(folder))
    torch.testing.assert_close(logits(spread), logits(tiny_model("llama")), rtol=0, atol=0)
    assert list(temporary.iterdir())
    del spread
    gc.collect()
    assert not list(temporary.iterdir())


def test_a_tensor_under_an_older_name_is_found_on_the_disk(tmp_path):
    folder = saved("gpt-neox-parallel", tmp_path / "model", prune=True)
    whole = numprune.load(folder, device="cpu")
    file = folder / "model.safetensors"
    tensors = {name.replace("lm_head", "embed_out"): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    spread = numprune.load(folder, device_map={"": "cpu", "lm_head": "disk"})
    torch.testing.assert_close(logits(spread), logits(whole), rtol=0, atol=0)


@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruned"])
def test_an_output_layer_that_is_not_the_embedding_stays_its_own_on_the_disk(prune, tmp_path):
    folder = saved("llama-gqa-tied", tmp_path / "model", prune=prune)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    whole = numprune.load(folder, device="cpu")
    for places_ in ({"": "disk"}, {"": "cpu", "lm_head": "disk"}, {"": "cpu", "model.embed_tokens": "disk"}):
        spread = numprune.load(folder, device_map=places_)
        torch.testing.assert_close(logits(spread), logits(whole), rtol=0, atol=0)
        assert spread.parameters == whole.parameters


ACTIONS = {
    "calibrate": lambda model: numprune.calibrate(model, random_ids(2, 8), samples=2, sequence_length=8),
    "fingerprint": lambda model: model.fingerprint(),
    "save": lambda model: model.save("never"),
    "export": lambda model: numprune.export(model, "never"),
    "adopt": lambda model: model.adopt(numprune.Recipe()),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruned"])
def test_what_wants_the_model_in_one_place_says_so(action, prune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = saved("llama", tmp_path / "model", prune=prune)
    spread = numprune.load(folder, device_map=halves(folder))
    with pytest.raises(InputError, match=r"spread over several devices.*without device_map"):
        ACTIONS[action](spread)
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device_map": "everywhere"}, "device_map is 'everywhere'; use auto"),
        ({"device_map": {}}, "names no modules"),
        ({"device_map": {"lm_head": "cpu"}}, "does not hold the whole model"),
        ({"device_map": {"": "moon"}}, "Device 'moon' is not available"),
        ({"device_map": {"": 77}}, "is not available here"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "max_memory of cpu is 'much'; give bytes"),
        ({"device_map": "auto", "max_memory": {"cpu": "-1GB"}}, "max_memory of cpu is '-1GB'; give bytes"),
        ({"device_map": "auto", "max_memory": {"moon": "1GB"}}, "Device 'moon' is not available"),
        ({"device_map": "auto", "device": "cpu"}, "leave one of them out"),
        ({"max_memory": {"cpu": "1GB"}}, "give device_map auto as well"),
    ],
)
@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruned"])
def test_a_bad_map_is_one_sentence(options, says, prune, tmp_path):
    folder = saved("llama", tmp_path / "model", prune=prune)
    with pytest.raises(NumpruneError, match=re.escape(says)):
        numprune.load(folder, **options)


def test_images_and_gguf_files_are_opened_as_a_whole(tmp_path):
    with pytest.raises(InputError, match="opened as a whole"):
        numprune.load("tiny-images", device_map="auto")
    numprune.export(numprune.load("tiny-stories", device="cpu"), tmp_path / "model.gguf", format="gguf")
    with pytest.raises(InputError, match="opened as a whole"):
        numprune.load(tmp_path / "model.gguf", device_map="auto")
    shutil.rmtree(tmp_path)
