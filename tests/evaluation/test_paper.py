"""The paper's figures, against a second reading of its tables, and which models they belong to."""

import pytest
from architectures import tiny_model
from transformers import LlamaConfig

from numprune import METHODS
from numprune.evaluation.paper import IMAGE_METRICS, LABELS, LLAMA_7B, LLAMAGENS, LLAMAS, PROTOCOLS, TEXTS, find
from numprune.llamagen.network import LlamaGenConfig

WIKITEXT2_7B = {
    "paper": (6.01, 6.60, 7.56, 11.66, 162.9),
    "flap": (6.34, 7.40, 9.18, 21.89, 577.9),
    "slicegpt": (6.97, 8.42, 12.75, 1540, 3605),
    "taylor": (7.41, 10.73, 18.58, 126.0, 9010),
}
FID = {
    "LlamaGen-XXL": (1.75, 2.39, {"paper": (6.09, 11.29, 22.45), "flap": (7.87, 15.93, 53.86)}),
    "LlamaGen-3B": (1.65, 2.26, {"paper": (3.97, 8.92, 20.16), "flap": (7.57, 38.45, 162.15)}),
}


def test_table_1_has_the_figures_of_llama_7b_on_wikitext2():
    assert LLAMA_7B.dense["wikitext2"] == 5.68
    for method, values in WIKITEXT2_7B.items():
        for ratio, value in zip(PROTOCOLS["table1"].ratios, values, strict=True):
            assert LLAMA_7B.rows[method, ratio]["wikitext2"] == value


@pytest.mark.parametrize("model", LLAMAS, ids=lambda model: model.name)
def test_every_text_gets_worse_with_the_ratio_and_never_beats_the_dense_model(model):
    for method in PROTOCOLS["table1"].methods:
        for text in TEXTS:
            curve = [model.rows[method, ratio].get(text) for ratio in (0.1, 0.2, 0.3, 0.5)]
            assert [model.dense[text], *curve] == sorted([model.dense[text], *curve])
            assert model.rows["paper", 0.3][text] <= model.rows[method, 0.3][text]


def test_what_the_paper_prints_as_nan_is_left_out():
    (llama_65b,) = (model for model in LLAMAS if model.name == "LLaMA-65B")
    assert ("taylor", 0.7) not in llama_65b.rows
    assert llama_65b.rows["flap", 0.7] == {"ptb": 2333}
    assert sum(len(model.rows) for model in LLAMAS) == 4 * 4 * 5 - 1


@pytest.mark.parametrize("model", LLAMAGENS, ids=lambda model: model.name)
def test_table_3_has_the_figures_of_both_image_models(model):
    guidance, dense, rows = FID[model.name]
    assert (model.guidance, model.dense["fid"]) == (guidance, dense)
    for method, values in rows.items():
        for ratio, value in zip(PROTOCOLS["table3"].ratios, values, strict=True):
            assert model.rows[method, ratio]["fid"] == value
    for values in (model.dense, *model.rows.values()):
        assert tuple(values) == IMAGE_METRICS
        assert 0 < values["precision"] < 1
        assert 0 < values["recall"] < 1


@pytest.mark.parametrize("model", [*LLAMAS, *LLAMAGENS], ids=lambda model: model.name)
def test_a_config_of_its_shape_is_recognised(model):
    kind = LlamaGenConfig if model.guidance else LlamaConfig
    values = {key: value for key, value in model.config.items() if key != "model_type"}
    assert find(kind(**values), (*LLAMAS, *LLAMAGENS)) is model
    assert find(kind(**{**values, "hidden_size": values["hidden_size"] // 2}), (*LLAMAS, *LLAMAGENS)) is None


def test_llama_2_is_not_taken_for_llama():
    config = LlamaConfig(**{key: value for key, value in LLAMA_7B.config.items() if key != "model_type"})
    config.max_position_embeddings = 4096
    assert find(config, LLAMAS) is None
    assert find(tiny_model("llama").config, LLAMAS) is None


def test_every_method_has_a_name_in_the_paper():
    for protocol in PROTOCOLS.values():
        assert set(protocol.methods) <= set(LABELS)
    assert {"paper", "flap", "taylor"} <= set(METHODS)
