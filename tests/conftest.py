import os

# Before any import that reads it: no test may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from architectures import make_tokenizer, random_ids, tiny_model

from numprune import calibrate


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    """A tiny Llama with a tokenizer."""
    return tiny_model("llama-gqa-tied", tokenizer=tokenizer)


@pytest.fixture
def stats(model):
    """Calibration of `model` on 8 x 32 random tokens."""
    return calibrate(model, random_ids(8, 32, seed=1), samples=8, sequence_length=32)


@pytest.fixture
def dense_state(model):
    """A copy of every tensor of `model`, taken before the test."""
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
