"""LlamaGen against a second implementation, written here from the published one, on its own checkpoints' layout."""

import math
import pickle
import threading
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F
from architectures import with_recipe
from safetensors.torch import load_file, save_file
from transformers import JanusVQVAE, JanusVQVAEConfig

from numprune import (
    Cancelled,
    InputError,
    LoadError,
    NumericalError,
    Recipe,
    allocate,
    calibrate,
    load,
    perplexity,
    prune,
    score,
    sizes,
    suggest,
)
from numprune.llamagen import VQ_FILE, LlamaGen, build, load_checkpoint, load_vq
from numprune.llamagen.image_tokenizer import VQ_FOLDER

GRID = 2
CODES, CLASSES = 40, 5
VQ = {
    "num_embeddings": CODES,
    "embed_dim": 4,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2, 1, 3],
    "num_res_blocks": 1,
    "num_patches": GRID,
}


def published_state(*, layers=2, hidden=64, heads=4, kv_heads=4, channels=24, seed=0):
    """Random tensors under the names and in the layout of a published decoder."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    def norm():
        return 1 + 0.3 * torch.randn(hidden, generator=generator)

    state = {
        "tok_embeddings.weight": random(CODES, hidden) * 4,
        "cls_embedding.embedding_table.weight": random(CLASSES + 1, hidden) * 4,
        "norm.weight": norm(),
        "output.weight": random(CODES, hidden),
        "freqs_cis": torch.zeros(3),
    }
    rows = hidden + 2 * kv_heads * hidden // heads
    for layer in range(layers):
        state |= {
            f"layers.{layer}.attention.wqkv.weight": random(rows, hidden) * 2,
            f"layers.{layer}.attention.wo.weight": random(hidden, hidden),
            f"layers.{layer}.feed_forward.w1.weight": random(channels, hidden),
            f"layers.{layer}.feed_forward.w3.weight": random(channels, hidden),
            f"layers.{layer}.feed_forward.w2.weight": random(hidden, channels),
            f"layers.{layer}.attention_norm.weight": norm(),
            f"layers.{layer}.ffn_norm.weight": norm(),
        }
    return state


def published_forward(state, condition, codes, *, heads, grid=GRID):
    """Logits (batch, 1 + t, codes) of class-conditional LlamaGen."""
    prefix = state["cls_embedding.embedding_table.weight"][condition][:, None]
    return published_decoder(state, prefix, codes, torch.ones(len(codes), 1), heads=heads, grid=grid)


def published_decoder(state, prefix, codes, valid, *, heads, grid=GRID):
    """Logits (batch, p + t, codes) as LlamaGen computes them: fused wqkv, complex rotation of interleaved pairs.

    `prefix` (batch, p, hidden) is the embedded condition; `valid` (batch, p) is 0 where it is padding.
    """
    hidden = state["norm.weight"].numel()
    head_dim = hidden // heads
    frequencies = 1 / 10000 ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    cells = [(row, column) for row in range(grid) for column in range(grid)]
    angles = torch.stack([torch.cat([row * frequencies, column * frequencies]) for row, column in cells])
    # The condition is not rotated but multiplied by nothing.
    turns = torch.cat([torch.zeros(prefix.shape[1], head_dim // 2), torch.polar(torch.ones_like(angles), angles)])

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight

    def rotate(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns[: x.shape[1], None]).flatten(-2)

    x = torch.cat([prefix, state["tok_embeddings.weight"][codes]], 1)
    tokens = x.shape[1]
    seen = torch.ones(len(x), tokens, tokens).tril()
    seen[:, :, : valid.shape[1]] *= valid[:, None]
    seen = seen * (1 - torch.eye(tokens)) + torch.eye(tokens)
    for layer in range(sum(key.endswith("wqkv.weight") for key in state)):
        part = {key.removeprefix(f"layers.{layer}."): value for key, value in state.items()}
        fused = norm(x, part["attention_norm.weight"]) @ part["attention.wqkv.weight"].T
        kv = (fused.shape[-1] - hidden) // 2
        q, k, v = (each.unflatten(-1, (-1, head_dim)) for each in fused.split([hidden, kv, kv], -1))
        q, k = rotate(q), rotate(k)
        k, v = (each.repeat_interleave(q.shape[2] // each.shape[2], 2) for each in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(head_dim)
        scores = scores.masked_fill(seen[:, None] == 0, -math.inf)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(-2)
        x = x + mixed @ part["attention.wo.weight"].T
        y = norm(x, part["ffn_norm.weight"])
        gated = F.silu(y @ part["feed_forward.w1.weight"].T) * (y @ part["feed_forward.w3.weight"].T)
        x = x + gated @ part["feed_forward.w2.weight"].T
    return norm(x, state["norm.weight"]) @ state["output.weight"].T


def published_vq(*, seed=0):
    """Random tensors under the names of a published tokenizer."""
    torch.manual_seed(seed)
    names = {"down.": "conv_blocks.", "up.": "conv_blocks.", "mid.block_1": "mid.0", "mid.attn_1": "mid.1"}
    names |= {"mid.block_2": "mid.2", ".block.": ".res."}
    state = {"quantize.codebook_used": torch.zeros(7)}
    for key, value in JanusVQVAE(JanusVQVAEConfig(**VQ)).state_dict().items():
        for new, old in names.items():
            key = key.replace(new, old)
        state[key] = torch.randn(value.shape) / max(1, value[0].numel()) ** 0.5
    return state


def published_decode(state, codes):
    """Pixels as LlamaGen's VQ decoder computes them, from the names of its own network."""

    def conv(x, name, padding=0):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def norm(x, name):
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def resnet(x, name):
        y = conv(F.silu(norm(x, f"{name}.norm1")), f"{name}.conv1", 1)
        y = conv(F.silu(norm(y, f"{name}.norm2")), f"{name}.conv2", 1)
        return y + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in state else x)

    def attend(x, name):
        y = norm(x, f"{name}.norm")
        q, k, v = (conv(y, f"{name}.{each}").flatten(2) for each in "qkv")
        mixed = v @ (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1).transpose(1, 2)
        return x + conv(mixed.reshape(x.shape), f"{name}.proj_out")

    x = F.normalize(state["quantize.embedding.weight"], dim=-1)[codes].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
    x = conv(conv(x, "post_quant_conv"), "decoder.conv_in", 1)
    x = resnet(attend(resnet(x, "decoder.mid.0"), "decoder.mid.1"), "decoder.mid.2")
    levels = len(VQ["channel_multiplier"])
    for level in range(levels):
        for block in range(VQ["num_res_blocks"] + 1):
            x = resnet(x, f"decoder.conv_blocks.{level}.res.{block}")
            if level == 0:
                x = attend(x, f"decoder.conv_blocks.{level}.attn.{block}")
        if level < levels - 1:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = conv(x, f"decoder.conv_blocks.{level}.upsample.conv", 1)
    return conv(F.silu(norm(x, "decoder.norm_out")), "decoder.conv_out", 1)


def write(path, state):
    torch.save(state, path)
    return path


def opened(path, **options):
    return load_checkpoint(path, device="cpu", **{"n_head": 4, "image_size": 16 * GRID, **options})


def random_input(*, rows=3, tokens=GRID**2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    condition = torch.randint(0, CLASSES + 1, (rows,), generator=generator)
    return condition, torch.randint(0, CODES, (rows, tokens), generator=generator)


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "c2i_tiny.pt", {"model": published_state()})


@pytest.fixture
def vq_file(tmp_path):
    return write(tmp_path / "vq_ds16_c2i.pt", {"model": published_vq()})


def refused(says, call, error=LoadError):
    with pytest.raises(error, match=says) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert message.count(". ") == 0


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("grid", [2, 3])
def test_logits_are_the_published_ones(tmp_path, kv_heads, grid):
    state = published_state(kv_heads=kv_heads)
    model = opened(write(tmp_path / "a.pt", state), image_size=16 * grid)
    condition, codes = random_input(tokens=grid**2)
    expected = published_forward(state, condition, codes, heads=4, grid=grid)
    found = model.forward(condition, codes)
    assert found.shape == (3, 1 + grid**2, CODES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # The order of the codes and the condition show in what was compared.
    assert float((expected - expected.roll(1, 0)).abs().max()) > 0.1
    assert float((found - model.forward(condition, codes.flip(1))).abs().max()) > 0.1


@pytest.mark.parametrize("nesting", ["model", "module", "state_dict", None])
def test_every_nesting_loads(tmp_path, nesting):
    state = published_state()
    model = opened(write(tmp_path / "a.pt", state if nesting is None else {nesting: state, "steps": 3}))
    condition, codes = random_input()
    torch.testing.assert_close(
        model.forward(condition, codes), published_forward(state, condition, codes, heads=4), rtol=1e-4, atol=1e-4
    )


def test_sizes_come_from_the_tensors_and_the_name(tmp_path):
    state = published_state(layers=12, hidden=768, heads=12, kv_heads=12, channels=8)
    path = write(tmp_path / "c2i_B_384.pt", {"model": state})
    model = load_checkpoint(path, device="cpu", dtype="bfloat16")
    config = model.config
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (12, 64, 8)
    assert (model.grid, model.classes, model.null_class, config.codes) == (24, CLASSES, CLASSES, CODES)
    assert model.dtype == config.dtype == torch.bfloat16
    assert model.parameters == sum(value.numel() for key, value in state.items() if key != "freqs_cis")


def test_what_the_file_does_not_tell_must_be_given(checkpoint):
    refused("does not tell the image size", lambda: load_checkpoint(checkpoint, n_head=4), InputError)
    refused("give load_checkpoint n_head", lambda: load_checkpoint(checkpoint, image_size=32), InputError)
    refused("multiple of 16", lambda: opened(checkpoint, image_size=40), InputError)
    refused("do not divide", lambda: opened(checkpoint, n_head=5), InputError)
    refused("do not divide", lambda: opened(checkpoint, n_head=-4), InputError)


def test_pixels_are_the_published_ones(checkpoint, vq_file):
    model = opened(checkpoint, vq=vq_file)
    _, codes = random_input(rows=2)
    images = model.decode(codes)
    expected = published_decode(published_vq(), codes)
    assert images.shape == (2, 3, 16 * GRID, 16 * GRID)
    assert images.dtype == torch.float32
    torch.testing.assert_close(model.vq.decode(codes), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images, ((expected + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.1


def test_without_a_tokenizer_everything_but_decode_works(checkpoint):
    model = opened(checkpoint)
    condition, codes = random_input()
    assert model.forward(condition, codes[:, :0]).shape == (3, 1, CODES)
    refused("give its VQ file", lambda: model.decode(codes), InputError)


def test_codes_that_are_no_image_are_refused(checkpoint, vq_file):
    model = opened(checkpoint, vq=vq_file)
    _, codes = random_input()
    refused("2 x 2 codes", lambda: model.decode(codes[:, :3]), InputError)
    refused("codebook has 0 to 39", lambda: model.decode(codes + CODES), InputError)


def test_files_that_are_no_decoder_are_refused(tmp_path, checkpoint, vq_file):
    refused("no file", lambda: opened(tmp_path / "missing.pt"))
    refused("is a VQ tokenizer", lambda: opened(vq_file))
    refused("is not a LlamaGen decoder", lambda: opened(write(tmp_path / "b.pt", {"weight": torch.zeros(2)})))
    refused("holds no tensors by name", lambda: opened(write(tmp_path / "c.pt", [1, 2])))
    text = {**published_state(), "cls_embedding.uncond_embedding": torch.zeros(120, 4)}
    refused("text-conditional", lambda: opened(write(tmp_path / "d.pt", text)), InputError)
    refused("is not a VQ tokenizer", lambda: opened(checkpoint, vq=checkpoint))
    refused("no file", lambda: opened(checkpoint, vq=tmp_path / "missing.pt"))


def test_damaged_files_are_refused(tmp_path, checkpoint):
    whole = checkpoint.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    refused("cannot be read|damaged", lambda: opened(tmp_path / "cut.pt"))
    (tmp_path / "empty.pt").write_bytes(b"")
    refused("cannot be read|damaged", lambda: opened(tmp_path / "empty.pt"))
    for change, says in (
        (lambda state: state.pop("layers.1.attention.wo.weight"), "lacks the tensor layers.1.attention.wo"),
        (lambda state: state.update({"norm.weight": torch.ones(3)}), "model.norm.weight"),
        (lambda state: state.update({"layers.1.attention.wqkv.weight": torch.ones(3, 64)}), "layers.1.attention.wqkv"),
    ):
        state = published_state()
        change(state)
        refused(says, lambda state=state: opened(write(tmp_path / "a.pt", state)))


class RunsCode:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("how", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_that_wants_code_is_refused(tmp_path, capsys, how):
    how({"model": published_state(), "args": RunsCode()}, tmp_path / "evil.pt")
    refused("wants to run code, which is refused", lambda: opened(tmp_path / "evil.pt"))
    assert "code ran" not in capsys.readouterr().out


def test_a_size_that_does_not_fit_the_memory_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    refused("GB of memory are free", lambda: opened(checkpoint))
    refused("more than the 100 allowed", lambda: opened(checkpoint, max_parameters=100))


def test_a_tokenizer_of_another_codebook_is_refused(checkpoint, vq_file, tmp_path):
    state = {**published_vq(), "quantize.embedding.weight": torch.ones(CODES + 1, 4)}
    refused("41 codes", lambda: opened(checkpoint, vq=write(tmp_path / "vq.pt", state)), InputError)
    assert load_vq(vq_file, GRID).config.channel_multiplier == VQ["channel_multiplier"]


def test_a_new_model_can_be_trained_after_it_generated():
    model = build(classes=3, vocab=11, grid=2, hidden=16, layers=1, heads=2, channels=8)
    condition, codes = torch.tensor([0, model.null_class]), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 10]])
    with torch.inference_mode():
        model.forward(condition, codes)
    logits = model.forward(condition, codes)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), codes.flatten()).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.module.parameters())


def test_sizes_that_do_not_fit_are_refused():
    refused("2-D rotary", lambda: build(hidden=24, heads=4), InputError)
    refused("2 names were given for 3", lambda: build(classes=3, class_names=["a", "b"]), InputError)
    refused(
        "8 codes on a grid of 2",
        lambda: build(vocab=9, grid=2, vq_config=JanusVQVAEConfig(**{**VQ, "num_embeddings": 8})),
        InputError,
    )


def sampled(model, condition, **options):
    return model.generate(condition, **{"seed": 3, "cfg_scale": 1.5, **options})


@pytest.fixture
def model(checkpoint, vq_file):
    return opened(checkpoint, vq=vq_file)


def test_a_seed_gives_the_same_images_however_they_are_batched(model):
    condition = torch.tensor([0, 3, 3, CLASSES])
    codes = sampled(model, condition)
    assert codes.shape == (4, GRID**2)
    assert torch.equal(codes, sampled(model, condition))
    assert torch.equal(codes, sampled(model, condition, batch_size=3))
    parts = [sampled(model, condition[:1]), sampled(model, condition[1:], seed=4)]
    assert torch.equal(codes, torch.cat(parts))
    assert not torch.equal(codes[1], codes[2])
    assert not torch.equal(codes, sampled(model, condition, seed=4))


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.5}])
def test_codes_with_a_cache_are_those_without(model, scale, settings):
    condition = torch.arange(CLASSES)
    options = {"cfg_scale": scale, **settings}
    expected = sampled(model, condition, use_cache=False, **options)
    assert torch.equal(sampled(model, condition, **options), expected)
    assert len(expected.unique()) > 2


def test_guidance_and_sampling_are_the_published_ones(model, checkpoint):
    """The published loop, code by code, on the published network; only the random numbers are ours."""
    state = torch.load(checkpoint)["model"]
    condition, scale, top_k, temperature, seed = torch.tensor([1, 4]), 2.5, 7, 1.3, 9
    uniform = [torch.rand(GRID**2, generator=torch.Generator().manual_seed(seed + row)) for row in range(2)]
    codes = torch.empty(2, 0, dtype=torch.long)
    for step in range(GRID**2):
        with_class = published_forward(state, condition, codes, heads=4)[:, -1]
        without = published_forward(state, torch.full_like(condition, CLASSES), codes, heads=4)[:, -1]
        logits = (without + (with_class - without) * scale) / temperature
        smallest = logits.topk(top_k).values[:, -1:]
        shares = logits.masked_fill(logits < smallest, -math.inf).softmax(-1)
        drawn = [int((share.cumsum(0) <= row[step]).sum()) for share, row in zip(shares, uniform, strict=True)]
        codes = torch.cat([codes, torch.tensor(drawn)[:, None]], dim=1)
    found = model.generate(condition, cfg_scale=scale, top_k=top_k, temperature=temperature, seed=seed)
    assert torch.equal(found, codes)


def test_guidance_of_zero_forgets_the_class(model):
    codes = sampled(model, torch.tensor([2, 4]), cfg_scale=0.0)
    assert torch.equal(codes, sampled(model, torch.tensor([CLASSES, CLASSES]), cfg_scale=1.0))
    assert not torch.equal(codes, sampled(model, torch.tensor([2, 4]), cfg_scale=1.0))


def test_one_forward_serves_both_halves_of_guidance(model):
    calls = []
    hook = model.module.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    sampled(model, [0, 1, 2])
    hook.remove()
    assert calls == [(6, 1)] * GRID**2


def test_what_cannot_be_sampled_is_refused(model):
    refused("Class ids run from 0 to 6; .* 0 to 4", lambda: model.generate([0, 6]), InputError)
    refused("Class ids run from -1", lambda: model.generate([-1]), InputError)
    refused("at least one class id", lambda: model.generate([]), InputError)
    refused("at least one class id", lambda: model.generate([0.5]), InputError)
    refused("cfg_scale is -1", lambda: model.generate([0], cfg_scale=-1), InputError)
    refused("cfg_scale is nan", lambda: model.generate([0], cfg_scale=math.nan), InputError)
    refused("batch_size is 0", lambda: model.generate([0], batch_size=0), InputError)
    refused("temperature is -1", lambda: model.generate([0], temperature=-1), InputError)


def test_sampling_reports_its_progress_and_stops(model):
    steps, stop = [], threading.Event()

    def progress(done, total, what):
        steps.append((done, total, what))
        if done == 2:
            stop.set()

    with pytest.raises(Cancelled):
        model.generate([0], progress=progress, cancel=stop)
    assert steps == [(1, GRID**2, "sampling images"), (2, GRID**2, "sampling images")]


def test_logits_that_are_not_finite_are_refused(model):
    model.module.lm_head.weight[3] = math.nan
    refused("not finite", lambda: model.generate([0]), NumericalError)


def test_the_whole_road(model, tmp_path):
    stats = calibrate(model, "self", samples=8)
    plan = allocate(score(model, stats), Recipe(ratio=0.4))
    pruned = prune(model, plan, stats)
    assert isinstance(pruned, LlamaGen)
    assert pruned.vq is model.vq
    assert sizes(model, plan) == sizes(pruned)
    assert pruned.parameters == plan.parameters_after < model.parameters
    pruned.save(tmp_path / "pruned")
    loaded = load(tmp_path / "pruned", device="cpu")
    condition, codes = random_input()
    assert torch.equal(loaded.forward(condition, codes), pruned.forward(condition, codes))
    assert torch.equal(loaded.decode(codes), pruned.decode(codes))
    assert torch.equal(sampled(loaded, [0, 1]), sampled(pruned, [0, 1]))
    assert loaded.recipe == pruned.recipe
    assert loaded.report == pruned.report
    assert (loaded.grid, loaded.classes, loaded.class_names) == (GRID, CLASSES, ["0", "1", "2", "3", "4"])


def test_the_other_ways_to_prune_apply(model):
    stats = calibrate(model, "self", samples=8)
    scores = score(model, stats)
    recipe = suggest(model, stats, scores, Recipe(ratio=0.3))
    refitted = prune(model, with_recipe(allocate(scores, recipe), compensation="residual"), stats)
    assert refitted.parameters < model.parameters
    assert perplexity(refitted, stats.rows.long()).tokens == 8 * GRID**2


def test_compensation_brings_the_logits_closer(model):
    stats = calibrate(model, "self", samples=64)
    plan = allocate(score(model, stats), Recipe(ratio=0.3))
    rows = stats.rows.long()
    condition, codes = rows[:, 0] - CODES, rows[:, 1:]
    dense = model.forward(condition, codes)
    losses = {}
    for how in ("none", "paper"):
        losses[how] = float(
            (prune(model, with_recipe(plan, compensation=how), stats).forward(condition, codes) - dense).norm()
        )
    assert losses["paper"] < losses["none"]


def test_load_opens_published_files(tmp_path, vq_file):
    state = published_state(layers=12, hidden=768, heads=12, kv_heads=12, channels=8)
    path = write(tmp_path / "c2i_B_256.pt", state)
    model = load(str(path), device="cpu")
    assert (model.name, model.grid, model.vq.config.num_patches) == (str(path), 16, 16)
    assert model.decode(torch.zeros(1, 256, dtype=torch.long)).shape == (1, 3, 256, 256)
    vq_file.unlink()
    assert load(path, device="cpu", dtype="float16").vq is None
    refused("more than the 100 allowed", lambda: load(path, max_parameters=100))
    refused("no file", lambda: load(tmp_path / "c2i_L_256.pt"))


def test_load_opens_published_files_of_the_hub(tmp_path, vq_file, monkeypatch):
    state = published_state(layers=12, hidden=768, heads=12, kv_heads=12, channels=8)
    files = {"c2i_B_256.pt": write(tmp_path / "c2i_B_256.pt", state), VQ_FILE: vq_file}
    asked = []

    def download(repository, file, *, revision):
        asked.append((repository, file, revision))
        return str(files[file])

    for place in ("sources", "images"):
        monkeypatch.setattr(f"numprune.loading.{place}.hf_hub_download", download)
    name = "FoundationVision/LlamaGen:c2i_B_256.pt"
    model = load(name, device="cpu", revision="main")
    assert asked == [("FoundationVision/LlamaGen", file, "main") for file in files]
    assert model.name == name
    assert model.vq is not None
    assert model.notes == []
    del files[VQ_FILE]
    model = load(name, device="cpu")
    assert model.vq is None
    assert "gave no image tokenizer" in model.notes[0]
    del files["c2i_B_256.pt"]
    refused("Cannot load FoundationVision/LlamaGen:c2i_B_256.pt", lambda: load(name))


def test_a_folder_with_a_tokenizer_that_lacks_weights_is_refused(model, tmp_path):
    model.save(tmp_path / "saved")
    file = tmp_path / "saved" / VQ_FOLDER / "model.safetensors"
    weights = load_file(file)
    del weights["post_quant_conv.bias"]
    save_file(weights, file)
    refused("see post_quant_conv.bias", lambda: load(tmp_path / "saved", device="cpu"))
    file.write_bytes(b"no weights")
    refused("damaged or cut short", lambda: load(tmp_path / "saved", device="cpu"))


def test_a_folder_with_the_tokenizer_of_another_model_is_refused(model, tmp_path):
    model.vq.config.num_patches = GRID + 1
    model.save(tmp_path / "saved")
    refused("on a grid of 3, the decoder 40 on 2", lambda: load(tmp_path / "saved", device="cpu"), InputError)
