"""Reading the published files: the decoder's .pt and the VQ tokenizer's .pt."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from transformers import JanusVQVAE, JanusVQVAEConfig

from numprune.errors import InputError, LoadError
from numprune.llamagen.adapter import LlamaGenAdapter
from numprune.llamagen.captions import CAPTION_FILES, Captions, captions_from
from numprune.llamagen.image_tokenizer import check_vq, make_vq
from numprune.llamagen.model import LlamaGen, caption_table, captioned
from numprune.llamagen.network import CaptionProjection, LlamaGenConfig, LlamaGenForImages, fill
from numprune.llamagen.published import CAPTION_PROJECTION, LAYER_NAMES, NORM_EPS, NULL_CAPTION, PIXELS_PER_CODE
from numprune.models.empty import without_memory
from numprune.models.placement import place, resolve_device, resolve_dtype

# Heads by (layers, hidden size): B, L, XL, XXL and 3B. Nothing in a checkpoint says them.
HEADS = {(12, 768): 12, (24, 1024): 16, (36, 1280): 20, (48, 1536): 24, (24, 3200): 32}
VQ_FILE, TEXT_VQ_FILE = "vq_ds16_c2i.pt", "vq_ds16_t2i.pt"
"""What LlamaGen calls the tokenizers of its class-conditional and of its text-conditional decoders."""
_SIZE_IN_NAME = re.compile(r"[_-](256|384|512)$")
_NESTINGS = ("model", "module", "state_dict")

State = dict[str, torch.Tensor]


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    n_head: int | None = None,
    image_size: int | None = None,
    vq: str | os.PathLike[str] | None = None,
    captions: Captions | str | os.PathLike[str] | Sequence[str] | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    max_parameters: int | None = None,
) -> LlamaGen:
    """Open a class-conditional or text-conditional decoder published by LlamaGen; sizes are read off the tensors.

    Args:
        path: the .pt file, as published (flat, or under "model", "module" or "state_dict").
        n_head: attention heads; needed only for sizes other than B, L, XL, XXL and 3B.
        image_size: pixels along one side; by default from the file's name (c2i_B_256.pt).
        vq: the VQ tokenizer's .pt file; without it everything but `decode` works.
        captions: what a text-conditional decoder draws: texts, which flan-t5-xl encodes where it is to be had, a file
            of one text a line, or features that were computed before. `notes` say which.
        device, dtype: as in `numprune.load`.
        max_parameters: refuse a model with more.

    Raises:
        InputError: a size is needed that the file does not tell, or one that was given does not fit.
        LoadError: the file is missing, damaged, no LlamaGen decoder, or larger than the memory.
    """
    path = Path(path).expanduser()
    target = resolve_device(device)
    if image_size is None:
        size = _SIZE_IN_NAME.search(path.stem)
        if not size:
            raise InputError(
                f"The name {path.name} does not tell the image size; name the file as published, such as"
                " c2i_B_256.pt, or give load_checkpoint the image_size."
            )
        image_size = int(size[1])
    if image_size < PIXELS_PER_CODE or image_size % PIXELS_PER_CODE:
        raise InputError(f"image_size is {image_size}; give a multiple of {PIXELS_PER_CODE}, such as 256 or 384.")
    state = _read(path)
    config = _decoder_config(path, state, n_head, image_size // PIXELS_PER_CODE)
    reads_captions = config.caption_size is not None
    if reads_captions != (captions is not None):
        raise InputError(
            f"{path} is a text-conditional decoder; give load_checkpoint captions, or put"
            f" {' or '.join(CAPTION_FILES)} beside it."
            if reads_captions
            else f"{path} draws classes and reads no captions; leave them out."
        )
    config.dtype = state["output.weight"].dtype
    config.dtype = wanted = resolve_dtype(dtype, config, target)
    count = sum(tensor.numel() for tensor in state.values())
    if max_parameters is not None and count > max_parameters:
        raise LoadError(
            f"{path} has {count:,} parameters, more than the {max_parameters:,} allowed here; choose a smaller model."
        )
    # The file itself is mapped, so only the converted weights take memory.
    needed, free = count * wanted.itemsize, psutil.virtual_memory().available
    if needed > free:
        raise LoadError(
            f"{path} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free;"
            " choose dtype bfloat16 or a smaller model."
        )
    known = None if captions is None else captions_from(captions, config.condition_tokens, device)
    if known is not None:
        config = captioned(config, known)
        config.dtype = wanted
    tokenizer = None if vq is None else load_vq(vq, config.grid)
    if tokenizer is not None:
        check_vq(tokenizer, config)
    with without_memory():
        module = LlamaGenForImages(config)
    fill(module, _decoder_weights(path, state, config, wanted, known), path)
    module = place(module, str(path), target)
    notes = [] if known is None else [f"Captions: {known.source}."]
    return LlamaGen(module=module, tokenizer=None, adapter=LlamaGenAdapter(), name=str(path), notes=notes, vq=tokenizer)


def load_vq(path: str | os.PathLike[str], grid: int) -> JanusVQVAE:
    """LlamaGen's VQ tokenizer (vq_ds16_c2i.pt) for images of `grid` x `grid` codes, in float32 on the CPU.

    Raises:
        LoadError: the file is missing, damaged or no VQ tokenizer.
    """
    path = Path(path).expanduser()
    state = _read(path)
    try:
        codes, width = state["quantize.embedding.weight"].shape
        base = state["encoder.conv_in.weight"].shape[0]
        levels = 1 + _last(state, r"encoder\.conv_blocks\.(\d+)\.")
        widths = [state[f"encoder.conv_blocks.{level}.res.0.conv1.weight"].shape[0] for level in range(levels)]
        depth = 1 + _last(state, r"encoder\.conv_blocks\.0\.res\.(\d+)\.")
        latent = state["quant_conv.weight"].shape[1]
    except (KeyError, ValueError) as error:
        raise LoadError(
            f"{path} is not a VQ tokenizer of LlamaGen (it lacks {error}); give a file such as vq_ds16_c2i.pt."
        ) from error
    config = JanusVQVAEConfig(
        num_embeddings=codes,
        embed_dim=width,
        base_channels=base,
        channel_multiplier=[width // base for width in widths],
        num_res_blocks=depth,
        latent_channels=latent,
        num_patches=grid,
    )
    weights = {_vq_name(key): value for key, value in state.items() if key != "quantize.codebook_used"}
    # LlamaGen normalises the codebook whenever it uses it, JanusVQVAE only when it decodes.
    codebook = "quantize.embedding.weight"
    weights[codebook] = torch.nn.functional.normalize(weights[codebook].float(), dim=-1)
    return make_vq(config, weights, path)


def _read(path: Path) -> State:
    """The tensors of a published file by name."""
    if not path.is_file():
        raise LoadError(f"There is no file {path}; give a .pt file that LlamaGen published.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError) as error:
        raise LoadError(
            f"{path} is a damaged pickle or one that wants to run code, which is refused; download it again from"
            " where LlamaGen published it."
        ) from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
        raise LoadError(f"{path} cannot be read ({reason}); download it again.") from error
    for nesting in _NESTINGS:
        if isinstance(state, Mapping) and isinstance(state.get(nesting), Mapping):
            state = state[nesting]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise LoadError(f"{path} holds no tensors by name; give a .pt file that LlamaGen published.")
    return dict(state)


def _decoder_config(path: Path, state: State, n_head: int | None, grid: int) -> LlamaGenConfig:
    if "quantize.embedding.weight" in state:
        raise LoadError(f"{path} is a VQ tokenizer; give it as vq beside a decoder, such as c2i_B_256.pt.")
    try:
        codes, hidden = state["tok_embeddings.weight"].shape
        tokens, caption_size = state.get(NULL_CAPTION, state["tok_embeddings.weight"][:1, :0]).shape
        reads_captions = NULL_CAPTION in state
        # The captions are counted when they are known.
        classes = 1 if reads_captions else state["cls_embedding.embedding_table.weight"].shape[0] - 1
        channels = state["layers.0.feed_forward.w1.weight"].shape[0]
        fused = state["layers.0.attention.wqkv.weight"].shape[0]
        state["output.weight"]
    except (KeyError, ValueError) as error:
        raise LoadError(
            f"{path} is not a LlamaGen decoder (it lacks {error}); give a file such as c2i_B_256.pt."
        ) from error
    layers = 1 + _last(state, r"layers\.(\d+)\.")
    heads = n_head or HEADS.get((layers, hidden))
    if heads is None:
        raise InputError(
            f"{path} has {layers} layers of size {hidden}, which is none of LlamaGen's B, L, XL, XXL and 3B;"
            " give load_checkpoint n_head, its number of attention heads."
        )
    head_dim = hidden // heads if heads > 0 else 0
    if head_dim * heads != hidden or head_dim % 4 or (fused - hidden) % (2 * head_dim):
        raise InputError(
            f"{heads} heads do not divide the size {hidden} of {path}; give the n_head it was trained with."
        )
    return LlamaGenConfig(
        codes=codes,
        classes=classes,
        grid=grid,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=(fused - hidden) // (2 * head_dim),
        intermediate_size=channels,
        rms_norm_eps=NORM_EPS,
        condition_tokens=tokens,
        caption_size=caption_size if reads_captions else None,
    )


def _decoder_weights(
    path: Path, state: State, config: LlamaGenConfig, dtype: torch.dtype, captions: Captions | None
) -> State:
    """The weights under transformers' names; raises LoadError when one is missing or has another shape."""
    hidden, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    # Interleaved pairs of a head become its two halves.
    order = torch.cat([torch.arange(0, config.head_dim, 2), torch.arange(1, config.head_dim, 2)])

    def take(name: str) -> torch.Tensor:
        if name not in state:
            raise LoadError(f"{path} lacks the tensor {name}; download it again.")
        return state[name].to(dtype, copy=True)

    def halves(rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(-1, config.head_dim, hidden)[:, order].reshape(-1, hidden)

    extra: State = {}
    if captions is None:
        table = torch.cat([take("tok_embeddings.weight"), take("cls_embedding.embedding_table.weight")])
    else:
        read = {f"{linear}.weight": take(f"{CAPTION_PROJECTION}.{linear}.weight") for linear in ("fc1", "fc2")}
        read["null"] = take(NULL_CAPTION)
        extra = {f"caption_projection.{name}": value for name, value in read.items()}
        with without_memory():
            projection = CaptionProjection(config)
        fill(projection, read, path)
        table = caption_table(projection, take("tok_embeddings.weight"), captions)
    weights = {
        **extra,
        "model.embed_tokens.weight": table,
        "model.norm.weight": take("norm.weight"),
        "lm_head.weight": take("output.weight"),
    }
    for layer in range(config.num_hidden_layers):
        source, target = f"layers.{layer}", f"model.layers.{layer}"
        fused = take(f"{source}.attention.wqkv.weight")
        if fused.shape != (hidden + 2 * keys, hidden):
            raise LoadError(f"{path} has another shape of {source}.attention.wqkv than of the first layer's.")
        q, k, v = fused.split([hidden, keys, keys])
        weights[f"{target}.self_attn.q_proj.weight"] = halves(q)
        weights[f"{target}.self_attn.k_proj.weight"] = halves(k)
        # A part of a fused tensor would keep all of it in memory.
        weights[f"{target}.self_attn.v_proj.weight"] = v.clone()
        for published, name in LAYER_NAMES.items():
            weights[f"{target}.{name}.weight"] = take(f"{source}.{published}.weight")
    return weights


def _last(state: State, pattern: str) -> int:
    """The highest number a pattern finds in the names; -1 when it finds none."""
    matches = filter(None, (re.match(pattern, key) for key in state))
    return max((int(match[1]) for match in matches), default=-1)


def _vq_name(key: str) -> str:
    """A tensor of LlamaGen's VQ network under its name in JanusVQVAE."""
    for side, blocks in (("encoder", "down"), ("decoder", "up")):
        key = key.replace(f"{side}.conv_blocks.", f"{side}.{blocks}.")
    for index, block in enumerate(("block_1", "attn_1", "block_2")):
        key = key.replace(f".mid.{index}.", f".mid.{block}.")
    return key.replace(".res.", ".block.")
