"""A LlamaGen model: it draws image codes, which its tokenizer turns into images."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import JanusVQVAE, JanusVQVAEConfig

from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.generation.cache import reserved_cache
from numprune.generation.sampling import Sampling, draw
from numprune.llamagen.captions import Captions
from numprune.llamagen.image_tokenizer import VQ_FOLDER, check_vq
from numprune.llamagen.network import CaptionProjection, LlamaGenConfig, LlamaGenForImages
from numprune.llamagen.published import NORM_EPS
from numprune.models.adapter import adapter_for
from numprune.models.batches import SAMPLED_SEQUENCES
from numprune.models.model import Model, twin

JUDGE_FOLDER = "judge"
"""The folder of a classifier of the images inside a saved folder; `numprune.evaluation.images.judge` reads it."""


@dataclass
class LlamaGen(Model):
    """An image model. Of a text-conditional one, the captions it was opened with are the classes.

    Attributes:
        vq: the image tokenizer, or None; everything but `decode` works without it.
        judge: the folder of a classifier that came with the model; None when there is none.
    """

    vq: JanusVQVAE | None = None
    judge: Path | None = None

    @property
    def grid(self) -> int:
        """Codes along one side of an image."""
        return self.config.grid

    @property
    def classes(self) -> int:
        """Classes without the null class."""
        return self.config.classes

    @property
    def null_class(self) -> int:
        """The class id that stands for no class: training drops classes to it, guidance compares with it."""
        return self.config.classes

    @property
    def class_names(self) -> list[str]:
        """What the classes show; their ids in digits where nobody said."""
        return self.config.class_names or [str(number) for number in range(self.classes)]

    @property
    def condition_tokens(self) -> int:
        """Tokens before the first code: 1 for a class, 120 for a caption."""
        return self.config.condition_tokens

    @property
    def sampling_settings(self) -> dict[str, float]:
        return {"cfg_scale": 4.0, "temperature": 1.0, "top_k": 2000, "top_p": 1.0}

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """The class, then row and column of each code."""
        names = []
        for index, token in enumerate(ids):
            if token < self.config.codes:
                row, column = divmod(index - self.condition_tokens, self.grid)
                names.append(f"{row},{column}")
            else:
                number = (token - self.config.codes) // self.condition_tokens
                names.append(self.class_names[number] if number < self.classes else "none")
        return names

    def draw_rows(
        self, samples: int, seed: int, *, progress: Progress | None = None, cancel: CancelEvent | None = None
    ) -> torch.Tensor:
        """Images of classes drawn uniformly, by `sampling_settings`, as `rows` of ids (samples, tokens)."""
        classes = torch.randint(self.classes, (samples,), generator=torch.Generator().manual_seed(seed))
        codes = self.generate(
            classes,
            **self.sampling_settings,
            seed=seed,
            batch_size=SAMPLED_SEQUENCES,
            progress=progress,
            cancel=cancel,
        )
        return self.rows(classes, codes.cpu())

    def rows(self, condition: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The ids (batch, condition_tokens + t) the module reads, from class ids (batch,) and codes (batch, t)."""
        return torch.cat([self._prefix(condition, condition), codes], dim=1)

    def _prefix(self, condition: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        """Ids of the conditions, (batch, condition_tokens), padded as those in `shape` are, both (batch,)."""
        config, tokens = self.config, torch.arange(self.condition_tokens, device=condition.device)
        ids = config.codes + condition[:, None] * len(tokens) + tokens
        if config.caption_lengths is None:
            return ids
        lengths = torch.tensor([*config.caption_lengths, len(tokens)], device=condition.device)
        return ids.masked_fill(tokens < len(tokens) - lengths[shape][:, None], config.vocab_size - 1)

    def forward(self, condition: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 1 + t, vocab) from class ids (batch,) and codes (batch, t); position p predicts code p.

        Gradients flow when the parameters of `module` ask for them.
        """
        logits = self.module(input_ids=self.rows(condition, codes), use_cache=False).logits
        return logits[:, self.condition_tokens - 1 :]

    def with_captions(self, captions: Captions) -> LlamaGen:
        """A text-conditional decoder with these captions instead of its own; both share all other weights.

        Raises:
            InputError: the decoder is class-conditional, or the features have other sizes than it reads.
        """
        if self.config.caption_size is None:
            raise InputError(f"{self.name} draws classes and reads no captions; open a text-conditional decoder.")
        module = twin(self.module)
        module.config = module.model.config = captioned(module.config, captions)
        own = module.get_input_embeddings()
        table = caption_table(module.caption_projection, own.weight[: self.config.codes], captions)
        embedding = torch.nn.Embedding(*table.shape, device="meta")
        embedding.weight = torch.nn.Parameter(table, requires_grad=False)
        module.set_input_embeddings(embedding)
        return replace(self, module=module, notes=[*self.notes, f"Captions: {captions.source}."])

    def generate(
        self,
        condition: torch.Tensor | Sequence[int],
        *,
        cfg_scale: float = 4.0,
        temperature: float = 1.0,
        top_k: int = 2000,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
        use_cache: bool = True,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> torch.Tensor:
        """Draw codes (batch, grid * grid) on the model's device, one image for each class id of `condition` (batch,).

        Image i draws from a generator seeded with seed + i, so the work may be split: images 4 and up of seed 0 are
        those of seed 4.

        Args:
            cfg_scale: classifier-free guidance s; the logits are u + s (c - u), with c those of the class and u
                those of the null class. 1 is no guidance, 0 no class.
            temperature, top_k, top_p: as in `Sampling`.
            batch_size: images drawn at once; the images do not depend on it.
            use_cache: False recomputes the whole image at every code.

        Raises:
            InputError: a class id or a setting is out of range.
            NumericalError: the logits are not finite.
            Cancelled: `cancel` was set.
        """
        steps = self.grid**2
        sampling = Sampling(steps, temperature, top_k, top_p, seed)
        if not (math.isfinite(cfg_scale) and cfg_scale >= 0):
            raise InputError(f"cfg_scale is {cfg_scale}; give 1 (no guidance) or a larger number, such as 4.")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1.")
        condition = self._checked(condition)
        parts: list[torch.Tensor] = []
        for begin in range(0, len(condition), batch_size):
            batch = condition[begin : begin + batch_size]
            columns = []
            for drawn in self._draw(batch, cfg_scale, replace(sampling, seed=seed + begin), use_cache):
                check_cancelled(cancel)
                columns.append(drawn)
                if progress is not None:
                    done = begin * steps + len(columns) * len(batch)
                    progress(done, len(condition) * steps, "sampling images")
            parts.append(torch.stack(columns, dim=1))
        return torch.cat(parts)

    @torch.inference_mode()
    def _draw(
        self, condition: torch.Tensor, cfg_scale: float, sampling: Sampling, use_cache: bool
    ) -> Iterator[torch.Tensor]:
        """Yield code after code of some images, (batch,) each."""
        batch = len(condition)
        ids = self._prefix(condition, condition)
        if cfg_scale != 1:
            ids = torch.cat([ids, self._prefix(torch.full_like(condition, self.null_class), condition)])
        generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(batch)]
        uniform = torch.stack(
            [torch.rand(sampling.max_new_tokens, generator=generator) for generator in generators], dim=1
        )
        # A top-k that keeps every code changes nothing, and would sort them all at each step.
        top_k = 0 if sampling.top_k >= self.config.codes else sampling.top_k
        uniform, warpers = uniform.to(self.device), replace(sampling, top_k=top_k).warpers()
        length = self.condition_tokens - 1 + sampling.max_new_tokens
        cache = reserved_cache(self.layers, length) if use_cache else None
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for numbers in uniform:
            output = self.module(input_ids=ids, past_key_values=cache, use_cache=use_cache, logits_to_keep=1)
            logits = output.logits[:, -1].float()
            if cfg_scale != 1:
                with_class, without = logits.chunk(2)
                logits = without + cfg_scale * (with_class - without)
            # Read once at the end: asking at every code would wait for the device.
            finite &= torch.isfinite(logits).all()
            drawn = draw(logits, sampling.temperature, warpers, numbers)
            yield drawn
            column = drawn.repeat(len(ids) // batch)[:, None]
            ids = column if use_cache else torch.cat([ids, column], dim=1)
        if not bool(finite):
            raise NumericalError("The model's logits are not finite; load it in float32 or prune less.")

    def _checked(self, condition: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Class ids (batch,) on the model's device."""
        condition = torch.as_tensor(condition)
        if condition.ndim != 1 or not len(condition) or condition.is_floating_point():
            raise InputError(f"The classes have shape {tuple(condition.shape)}; give at least one class id, (batch,).")
        lowest, highest = int(condition.min()), int(condition.max())
        if not 0 <= lowest <= highest <= self.null_class:
            raise InputError(
                f"Class ids run from {lowest} to {highest}; {self.name} has classes 0 to {self.classes - 1}, and"
                f" {self.null_class} for none."
            )
        return condition.long().to(self.device)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Images (batch, 3, size, size), float32 in [0, 1] on the model's device, from codes (batch, grid * grid).

        Raises:
            InputError: there is no image tokenizer, or the codes are not a grid of its codebook.
        """
        if self.vq is None:
            raise InputError(
                f"{self.name} came without an image tokenizer; give its VQ file to turn codes into images."
            )
        if codes.ndim != 2 or codes.shape[1] != self.grid**2:
            raise InputError(
                f"The codes have shape {tuple(codes.shape)}; an image of this model is {self.grid} x {self.grid} codes,"
                f" so give (batch, {self.grid**2})."
            )
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codes:
            raise InputError(
                f"The codes run from {int(codes.min())} to {int(codes.max())}; the codebook has 0 to"
                f" {self.config.codes - 1}."
            )
        vq = self.vq.to(self.device)
        pixels = torch.cat([vq.decode(part).float() for part in codes.to(self.device).split(16)])
        # A tokenizer of grey images paints one channel.
        return ((pixels + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        if self.vq is not None:
            self.vq.save_pretrained(folder / VQ_FOLDER, save_original_format=False)
        if self.judge is not None:
            shutil.copytree(self.judge, folder / JUDGE_FOLDER)


def build(
    *,
    classes: int = 10,
    vocab: int = 512,
    grid: int = 8,
    hidden: int = 192,
    layers: int = 8,
    heads: int = 8,
    channels: int = 512,
    vq_config: JanusVQVAEConfig | None = None,
    class_names: list[str] | None = None,
    name: str = "llamagen",
) -> LlamaGen:
    """A LlamaGen of random float32 weights on the CPU, ready to be trained.

    Args:
        classes: without the null class, which gets id `classes`.
        vocab: entries of the codebook.
        grid: codes along one side of an image.
        channels: MLP channels of a layer.
        vq_config: of the image tokenizer, whose weights are random too; None for none.
        class_names: what the classes show, in order.

    Raises:
        InputError: the sizes do not fit each other.
    """
    if hidden % heads or (hidden // heads) % 4:
        raise InputError(f"Hidden size {hidden} in {heads} heads is no multiple of 4 a head; 2-D rotary needs one.")
    if class_names is not None and len(class_names) != classes:
        raise InputError(f"{len(class_names)} names were given for {classes} classes; give one for each.")
    config = LlamaGenConfig(
        codes=vocab,
        classes=classes,
        grid=grid,
        class_names=class_names,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=channels,
        rms_norm_eps=NORM_EPS,
    )
    vq = None if vq_config is None else JanusVQVAE(vq_config)
    if vq is not None:
        check_vq(vq, config)
    module = LlamaGenForImages(config).eval()
    return LlamaGen(module=module, tokenizer=None, adapter=adapter_for(config), name=name, vq=vq)


def captioned(config: LlamaGenConfig, captions: Captions) -> LlamaGenConfig:
    """A config for these captions; raises InputError when their features have other sizes than the decoder reads."""
    tokens, size = captions.features.shape[1:]
    if (tokens, size) != (config.condition_tokens, config.caption_size):
        raise InputError(
            f"The captions have {tokens} tokens of {size} features, the decoder reads {config.condition_tokens} of"
            f" {config.caption_size}; encode them with the encoder it was trained with."
        )
    settings = config.to_dict() | {"classes": len(captions.texts), "class_names": captions.texts}
    return type(config).from_dict(settings | {"caption_lengths": list(captions.lengths)})


@torch.no_grad()
def caption_table(projection: CaptionProjection, codes: torch.Tensor, captions: Captions) -> torch.Tensor:
    """The embedding table (ids, hidden) of codes (codes, hidden), captions, no caption and padding."""
    features = captions.left_padded().to(projection.null)
    rows = projection(torch.cat([features, projection.null[None]])).flatten(0, 1)
    return torch.cat([codes, rows, rows.new_zeros(1, rows.shape[1])])
