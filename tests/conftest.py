import os

# Before any import that reads it: no test may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# The models are tiny: a second thread gains nothing, and where another program holds its core all the others wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from architectures import make_tokenizer, random_ids, tiny_model
from forked import program
from transformers import JanusVQVAEConfig

from numprune import calibrate
from numprune.cli import main
from numprune.evaluation.images.judge import Judge, Panel
from numprune.evaluation.images.references import reference_from_images
from numprune.llamagen.model import JUDGE_FOLDER, build
from numprune.plan.latency import Latency


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
def framing_tokenizer():
    """One that begins every text with BOS."""
    return make_tokenizer(framing=True)


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


@pytest.fixture
def run(capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def call(*argv):
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(tmp_path_factory):
    """What models draw of themselves is kept for all tests, outside the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def forking(cache_of_the_run):
    """The program that forks commands as processes of their own."""
    with program() as running:
        yield running


@pytest.fixture(scope="session")
def images_folder(tmp_path_factory):
    """A tiny random image model with a tokenizer and a judge, as `Model.save` writes it."""
    side = 8
    torch.manual_seed(0)
    vq = JanusVQVAEConfig(
        num_embeddings=20,
        embed_dim=4,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        num_patches=side // 2,
    )
    sizes = {"classes": 3, "vocab": 20, "grid": side // 2, "hidden": 16, "layers": 2, "heads": 2, "channels": 8}
    model = build(**sizes, vq_config=vq, class_names=["ant", "bee", "cow"])
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(20)
    judge = Judge(channels=1, size=side, classes=3, width=6, data="noise").eval().requires_grad_(False)
    blind = Panel(judge, None, 0.75, 40)
    target = tmp_path_factory.mktemp("model") / "images"
    model.save(target)
    (target / JUDGE_FOLDER).mkdir()
    Panel(judge, reference_from_images(torch.rand(40, 3, side, side), blind), 0.75, 40).save(target / JUDGE_FOLDER)
    return target


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Decode times in the place of measured ones: half of a token's are the modules', most of it for being there."""
    from numprune.evaluation import latency

    def table(model, **_):
        modules = {block.key: block.units * block.cost for block in model.blocks}
        widths = {}
        for kind in ("attention", "mlp"):
            size = next(size for key, size in modules.items() if key.kind == kind)
            widths[kind] = ((0.0, 0.0), (1.0, 4e-4), (float(size), 6e-4))
        return Latency(len(modules) * 1.2e-3, modules, widths, 1, 64, 5, "cpu", "float32", 2)

    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "measure_latency", table)
