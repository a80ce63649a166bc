import pytest
from architectures import make_tokenizer, tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a tiny random Llama."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model("llama", tokenizer=make_tokenizer(), num_hidden_layers=3).save(folder)
    return folder
