"""LlamaGen's .pt against the published computation of tests/models/test_llamagen.py, and against our reader."""

import pytest
import torch
from architectures import tiny_model
from test_captions import CAPTIONS, TEXTS, text_state
from test_llamagen import published_forward
from transformers import JanusVQVAEConfig

from numprune import InputError, ModuleKey, load, load_checkpoint
from numprune.errors import NumpruneError
from numprune.export import export, formats_for
from numprune.export.llamagen import model_args
from numprune.llamagen import build
from numprune.llamagen.captions import Captions
from numprune.models.model import slice_module

HEADS, CHANNELS, GRID, CODES, CLASSES = 4, 24, 2, 40, 5


def decoder(seed=0, **sizes):
    """A random decoder whose norms are not all ones."""
    torch.manual_seed(seed)
    sizes = {"vocab": CODES, "classes": CLASSES, "grid": GRID, "hidden": 64, "channels": CHANNELS, **sizes}
    model = build(layers=2, heads=HEADS, **sizes)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter.shape[-1] * (parameter.ndim > 1)) ** 0.5)
    model.module.requires_grad_(False)
    return model


def sliced(model, heads=(HEADS, HEADS), channels=(CHANNELS, CHANNELS), **biases):
    keep = {}
    for layer in (0, 1):
        # From the far end, so that a slice is never the identity by chance.
        keep[ModuleKey(layer, "attention")] = list(range(HEADS))[HEADS - heads[layer] :]
        keep[ModuleKey(layer, "mlp")] = list(range(CHANNELS))[CHANNELS - channels[layer] :]
    return model.around(slice_module(model.module, model.adapter, keep, **biases))


def inputs():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(0, CLASSES + 1, (3,), generator=generator),
        torch.randint(0, CODES, (3, GRID**2), generator=generator),
    )


@pytest.mark.parametrize(("heads", "channels"), [(4, 24), (4, 17), (3, 17), (1, 1)])
def test_the_published_computation_gives_the_logits_of_the_pruned_model(tmp_path, heads, channels):
    model = sliced(decoder(), (heads, heads), (channels, channels))
    out = export(model, tmp_path / "c2i_tiny.pt", format="llamagen")
    state = torch.load(out.path, weights_only=True)["model"]
    condition, codes = inputs()
    expected = model.forward(condition, codes)
    torch.testing.assert_close(published_forward(state, condition, codes, heads=HEADS), expected, rtol=1e-4, atol=1e-4)
    again = load_checkpoint(out.path, n_head=HEADS, image_size=16 * GRID, device="cpu")
    assert again.units()[(0, "mlp")] == channels
    torch.testing.assert_close(
        again.forward(condition, codes), expected, rtol=1e-5, atol=1e-5 if heads < HEADS else 0.0
    )
    assert any("are zeros" in note for note in out.notes) == (heads < HEADS)
    assert out.bytes == out.path.stat().st_size


def test_what_is_said_of_zero_heads_is_counted(tmp_path):
    model = sliced(decoder(), (3, 3), (17, 17))
    out = export(model, tmp_path / "c2i_tiny.pt", format="llamagen")
    state = torch.load(out.path, weights_only=True)["model"]
    zeros = sum(int((value == 0).sum()) for value in state.values())
    # A head of 16 channels has rows of q, k and v and columns of the output projection, in both layers.
    assert zeros == 2 * 4 * 16 * 64
    assert any(f"1 of 4 KV heads a layer are zeros, {zeros:,} parameters" in note for note in out.notes)


@pytest.mark.parametrize(("hidden", "channels"), [(64, 17), (64, 1), (768, 1434), (1024, 2816), (3200, 5431)])
def test_the_arguments_make_an_mlp_of_the_right_width(hidden, channels):
    config = build(layers=1, heads=4, hidden=hidden, channels=8, vocab=8).config
    arguments = model_args(config, {(0, "mlp"): channels})
    stock = int(2 * (4 * arguments["dim"]) / 3)
    width = int(arguments["ffn_dim_multiplier"] * stock)
    assert width % arguments["multiple_of"] == 0
    assert width == channels


def test_captions_are_left_out_and_their_projection_kept(tmp_path):
    torch.save({"model": text_state()}, tmp_path / "t2i_tiny.pt")
    dense = load_checkpoint(tmp_path / "t2i_tiny.pt", n_head=4, image_size=32, captions=CAPTIONS, device="cpu")
    model = sliced(dense, channels=(20, 20))
    out = export(model, tmp_path / "t2i_pruned.pt", format="llamagen")
    assert any("Captions are not in the file" in note for note in out.notes)
    others = Captions(TEXTS[1:], CAPTIONS.features[1:], CAPTIONS.lengths[1:])
    again = load_checkpoint(out.path, n_head=4, image_size=32, captions=others, device="cpu")
    _, codes = inputs()
    torch.testing.assert_close(
        again.forward(torch.tensor([0, 1, 2]), codes),
        model.with_captions(others).forward(torch.tensor([0, 1, 2]), codes),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"heads": (4, 3)}, "has 3 to 4 heads a layer"),
        ({"heads": (4, 0)}, "has 0 to 4 heads a layer"),
        ({"channels": (20, 24)}, "has 20 to 24 MLP channels a layer"),
        ({"heads": (0, 0)}, "has no heads left"),
        ({"channels": (20, 20), "last_biases": {ModuleKey(0, "mlp"): torch.ones(64)}}, "biases by its compensation"),
    ],
)
def test_refuses_what_the_published_code_cannot_open_and_names_the_folder(tmp_path, sizes, says):
    with pytest.raises(InputError, match=says) as caught:
        export(sliced(decoder(), **sizes), tmp_path / "a.pt", format="llamagen")
    assert "numprune" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_refuses_other_architectures_and_other_constants():
    assert "not a LlamaGen decoder" in formats_for(tiny_model("llama"))["llamagen"]
    assert "norm epsilon" in formats_for(tiny_model("llamagen"))["llamagen"]  # 1e-6, the default of Llama


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numprune.export.llamagen.torch.save", full)
    with pytest.raises(NumpruneError, match="nothing was left there"):
        export(decoder(), tmp_path / "a.pt", format="llamagen")
    assert not list(tmp_path.iterdir())


def test_numprune_s_own_folder_holds_an_image_model_whole(tmp_path):
    vq = {"num_embeddings": CODES, "embed_dim": 4, "latent_channels": 8, "base_channels": 32, "num_res_blocks": 1}
    vq_config = JanusVQVAEConfig(**vq, channel_multiplier=[1, 1], num_patches=GRID)
    model = sliced(decoder(vq_config=vq_config), (3, 0), (20, 7))
    out = export(model, tmp_path / "folder", format="numprune")
    again = load(out.path, device="cpu")
    assert again.units() == model.units()
    condition, codes = inputs()
    torch.testing.assert_close(again.forward(condition, codes), model.forward(condition, codes), rtol=0, atol=0)
    torch.testing.assert_close(again.decode(codes), model.decode(codes), rtol=0, atol=0)
    assert export(model, out.path, format="numprune").bytes == out.bytes
    assert out.snippet == f'import numprune\n\nmodel = numprune.load("{out.path}")'
