import pytest
from architectures import make_tokenizer, tiny_model
from forked import program


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a tiny random Llama."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model("llama", tokenizer=make_tokenizer(), num_hidden_layers=3).save(folder)
    return folder


@pytest.fixture(scope="session")
def forking(cache_of_the_run):
    """The program that forks commands as processes of their own."""
    with program() as running:
        yield running
