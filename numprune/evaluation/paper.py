"""What the paper prints: the figures of its tables 1 and 3 and how it measured them.

Shen et al., *Numerical Pruning for Efficient Autoregressive Models*, AAAI 2025 (arXiv 2412.12441). Figures are as
printed; where it prints "Nan" there is none. Figure 5 has no numbers beside its axes, so it has none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "Shen et al., AAAI 2025 (arXiv 2412.12441)"

LABELS = {"paper": "numerical pruning", "flap": "FLAP", "slicegpt": "SliceGPT", "taylor": "LLM-Pruner"}
"""What the paper calls the methods; "taylor" is LLM-Pruner without its fine-tuning, as in table 1."""

TEXTS = ("wikitext2", "ptb", "c4")
IMAGE_METRICS = ("fid", "sfid", "is", "precision", "recall")

Values = Mapping[str, float]
"""By dataset (perplexity) or by image metric."""


@dataclass(frozen=True)
class PaperModel:
    """A model of the paper's tables.

    Attributes:
        name: as the paper has it.
        checkpoint: where its weights are published.
        config: what its config says; a model with these values is taken for it.
        dense: of the model itself.
        rows: of every method (by its name here) at every ratio.
        guidance: the classifier-free guidance its images were drawn with; None for a language model.
    """

    name: str
    checkpoint: str
    config: Mapping[str, Any]
    dense: Values
    rows: Mapping[tuple[str, float], Values]
    guidance: float | None = None


@dataclass(frozen=True)
class Protocol:
    """How a table or figure was measured.

    Attributes:
        title: its name in the paper.
        about: what it shows.
        models: those it has, the one measured by default first.
        by_default: how many of them are measured when none is named.
        methods: by their names here.
        ratios: shares pruned.
        calibration, samples, sequence_length: data, number of sequences or images, tokens of one; perplexity is
            measured on windows of that length too. As in the code it goes back to, windows go on where the last one
            ended, without a BOS of their own.
        texts: held out, whose perplexity is measured.
        images: drawn and compared; None for a language model.
        unsaid: what the paper leaves open, and what is done here.
    """

    title: str
    about: str
    models: tuple[PaperModel, ...]
    by_default: int
    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    calibration: str
    samples: int
    sequence_length: int
    texts: tuple[str, ...]
    images: int | None
    unsaid: tuple[str, ...]

    def heading(self, model: str) -> str:
        """The title of what was measured of a model."""
        return f"{model} by the protocol of {self.title}: {self.about}"


def find(config: Any, models: tuple[PaperModel, ...]) -> PaperModel | None:
    """The model of the paper that a transformers config describes; None when it describes none of them."""
    for model in models:
        if all(getattr(config, key, None) == value for key, value in model.config.items()):
            return model
    return None


def _texts(wikitext2: float | None, ptb: float | None, c4: float | None) -> dict[str, float]:
    return {name: value for name, value in zip(TEXTS, (wikitext2, ptb, c4), strict=True) if value is not None}


def _images(*values: float) -> dict[str, float]:
    return dict(zip(IMAGE_METRICS, values, strict=True))


def _llama(size: str, layers: int, hidden: int, heads: int, channels: int, dense: Values, rows: Any) -> PaperModel:
    return PaperModel(
        name=f"LLaMA-{size}",
        checkpoint=f"huggyllama/llama-{size.lower()}",
        # LLaMA-2 has the same shapes and reads twice as far.
        config={
            "model_type": "llama",
            "vocab_size": 32000,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": channels,
            "max_position_embeddings": 2048,
        },
        dense=dense,
        rows={(method, ratio): _texts(*values) for (method, ratio), values in rows.items()},
    )


def _llamagen(
    size: str, layers: int, hidden: int, heads: int, channels: int, guidance: float, dense: Values, rows: Any
) -> PaperModel:
    return PaperModel(
        name=f"LlamaGen-{size}",
        checkpoint=f"FoundationVision/LlamaGen:c2i_{size}_384.pt",
        config={
            "model_type": "llamagen",
            "codes": 16384,
            "classes": 1000,
            "grid": 24,
            "condition_tokens": 1,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": channels,
        },
        dense=dense,
        rows={(method, ratio): _images(*values) for (method, ratio), values in rows.items()},
        guidance=guidance,
    )


LLAMA_7B = _llama(
    "7B",
    32,
    4096,
    32,
    11008,
    _texts(5.68, 27.34, 7.08),
    {
        ("taylor", 0.1): (7.41, 36.73, 9.25),
        ("slicegpt", 0.1): (6.97, 88.48, 23.54),
        ("flap", 0.1): (6.34, 32.39, 8.058),
        ("paper", 0.1): (6.01, 31.65, 7.94),
        ("taylor", 0.2): (10.73, 59.73, 12.15),
        ("slicegpt", 0.2): (8.42, 120.89, 35.93),
        ("flap", 0.2): (7.40, 36.77, 9.99),
        ("paper", 0.2): (6.60, 35.75, 9.49),
        ("taylor", 0.3): (18.58, 93.24, 17.78),
        ("slicegpt", 0.3): (12.75, 258.90, 67.33),
        ("flap", 0.3): (9.18, 47.35, 13.08),
        ("paper", 0.3): (7.56, 41.05, 11.53),
        ("taylor", 0.5): (126.0, 460.7, 73.88),
        ("slicegpt", 0.5): (1540, 6364, 4847),
        ("flap", 0.5): (21.89, 135.8, 30.86),
        ("paper", 0.5): (11.66, 82.55, 20.72),
        ("taylor", 0.7): (9010, 4111, 2655),
        ("slicegpt", 0.7): (3605, 7304, 8096),
        ("flap", 0.7): (577.9, 1835, 833.7),
        ("paper", 0.7): (162.9, 721.3, 361.6),
    },
)
LLAMA_13B = _llama(
    "13B",
    40,
    5120,
    40,
    13824,
    _texts(5.09, 19.23, 6.61),
    {
        ("taylor", 0.1): (6.38, 31.85, 8.16),
        ("slicegpt", 0.1): (6.11, 60.15, 20.18),
        ("flap", 0.1): (5.45, 20.99, 7.33),
        ("paper", 0.1): (5.38, 20.52, 7.27),
        ("taylor", 0.2): (6.38, 31.85, 9.42),
        ("slicegpt", 0.2): (7.17, 86.26, 29.70),
        ("flap", 0.2): (6.03, 23.33, 8.42),
        ("paper", 0.2): (5.89, 23.11, 8.39),
        ("taylor", 0.3): (11.81, 45.42, 12.65),
        ("slicegpt", 0.3): (9.18, 125.40, 46.46),
        ("flap", 0.3): (6.97, 27.36, 10.01),
        ("paper", 0.3): (6.57, 26.27, 9.98),
        ("taylor", 0.5): (45.69, 152.99, 36.94),
        ("slicegpt", 0.5): (18.75, 277.34, 122.5),
        ("flap", 0.5): (12.88, 53.54, 18.37),
        ("paper", 0.5): (8.91, 37.56, 16.12),
        ("taylor", 0.7): (5900, 6039, 1334),
        ("slicegpt", 0.7): (67.65, 874.9, 537.4),
        ("flap", 0.7): (647.8, 1588, 975.1),
        ("paper", 0.7): (41.66, 275.7, 115.3),
    },
)
LLAMA_30B = _llama(
    "30B",
    60,
    6656,
    52,
    17920,
    _texts(4.10, 16.29, 5.98),
    {
        ("taylor", 0.1): (4.92, 18.17, 6.63),
        ("slicegpt", 0.1): (5.24, 39.72, 17.83),
        ("flap", 0.1): (4.52, 17.29, 6.49),
        ("paper", 0.1): (4.43, 17.26, 6.47),
        ("taylor", 0.2): (5.83, 20.18, 7.55),
        ("slicegpt", 0.2): (6.18, 50.95, 26.85),
        ("flap", 0.2): (5.18, 19.30, 7.42),
        ("paper", 0.2): (4.92, 18.58, 7.36),
        ("taylor", 0.3): (7.59, 24.97, 9.08),
        ("slicegpt", 0.3): (7.74, 75.89, 42.71),
        ("flap", 0.3): (6.28, 21.88, 8.53),
        ("paper", 0.3): (5.46, 20.48, 8.46),
        ("taylor", 0.5): (19.68, 78.29, 18.64),
        ("slicegpt", 0.5): (15.60, 195.4, 118.5),
        ("flap", 0.5): (13.41, 47.30, 13.17),
        ("paper", 0.5): (7.25, 26.68, 11.91),
        ("taylor", 0.7): (895.7, 3274, 456.9),
        ("slicegpt", 0.7): (71.25, 633.1, 406.6),
        ("flap", 0.7): (2786, 2735, 2416),
        ("paper", 0.7): (39.88, 124.2, 50.43),
    },
)
LLAMA_65B = _llama(
    "65B",
    80,
    8192,
    64,
    22016,
    _texts(3.53, 17.61, 5.62),
    {
        ("taylor", 0.1): (3.98, 19.44, 6.08),
        ("slicegpt", 0.1): (4.57, 36.20, 14.14),
        ("flap", 0.1): (3.91, 19.35, 6.04),
        ("paper", 0.1): (3.82, 19.28, 6.02),
        ("taylor", 0.2): (4.65, 21.85, 6.75),
        ("slicegpt", 0.2): (5.34, 61.09, 21.86),
        ("flap", 0.2): (4.45, 21.45, 6.75),
        ("paper", 0.2): (4.26, 20.94, 6.73),
        ("taylor", 0.3): (5.52, 26.38, 7.53),
        ("slicegpt", 0.3): (6.56, 74.43, 35.68),
        ("flap", 0.3): (5.10, 23.91, 7.59),
        ("paper", 0.3): (4.75, 22.13, 7.51),
        ("taylor", 0.5): (9.34, 43.79, 12.16),
        ("slicegpt", 0.5): (12.01, 160.3, 92.66),
        ("flap", 0.5): (6.98, 28.52, 10.36),
        ("paper", 0.5): (6.02, 25.17, 9.73),
        ("slicegpt", 0.7): (102.4, 863.9, 662.8),
        ("flap", 0.7): (None, 2333, None),
        ("paper", 0.7): (9.65, 69.49, 20.84),
    },
)
LLAMAGEN_XXL = _llamagen(
    "XXL",
    48,
    1536,
    24,
    4096,
    1.75,
    _images(2.39, 6.02, 253.16, 0.8073, 0.5960),
    {
        ("flap", 0.1): (7.87, 9.92, 145.25, 0.6196, 0.6334),
        ("paper", 0.1): (6.09, 7.70, 168.96, 0.7098, 0.6501),
        ("flap", 0.15): (15.93, 11.81, 100.48, 0.5205, 0.6202),
        ("paper", 0.15): (11.29, 9.85, 124.31, 0.6295, 0.6584),
        ("flap", 0.2): (53.86, 20.63, 32.41, 0.2831, 0.6714),
        ("paper", 0.2): (22.45, 14.16, 78.64, 0.5368, 0.6766),
    },
)
LLAMAGEN_3B = _llamagen(
    "3B",
    24,
    3200,
    32,
    8704,
    1.65,
    _images(2.26, 6.19, 260.46, 0.8207, 0.5835),
    {
        ("flap", 0.1): (7.57, 8.40, 158.74, 0.6719, 0.6490),
        ("paper", 0.1): (3.97, 7.45, 202.93, 0.7393, 0.6286),
        ("flap", 0.15): (38.45, 23.61, 57.29, 0.4345, 0.6327),
        ("paper", 0.15): (8.92, 10.32, 152.36, 0.6683, 0.6397),
        ("flap", 0.2): (162.15, 93.98, 5.97, 0.1336, 0.2803),
        ("paper", 0.2): (20.16, 16.29, 95.05, 0.5487, 0.6372),
    },
)

LLAMAS = (LLAMA_7B, LLAMA_13B, LLAMA_30B, LLAMA_65B)
LLAMAGENS = (LLAMAGEN_XXL, LLAMAGEN_3B)

PROTOCOLS = {
    "table1": Protocol(
        title="table 1",
        about="perplexity of pruned LLaMA models",
        models=LLAMAS,
        by_default=1,
        methods=("paper", "flap", "slicegpt", "taylor"),
        ratios=(0.1, 0.2, 0.3, 0.5, 0.7),
        calibration="wikitext2",
        samples=128,
        sequence_length=2048,
        texts=TEXTS,
        images=None,
        unsaid=(
            "the paper does not say how it joins the texts: the dense rows tell how far the protocols agree",
            "its ratios are taken for shares of the parameters of heads and channels",
        ),
    ),
    "table3": Protocol(
        title="table 3",
        about="images of pruned LlamaGen models, 384 x 384",
        models=LLAMAGENS,
        by_default=2,
        methods=("paper", "flap"),
        ratios=(0.1, 0.15, 0.2),
        calibration="self",
        samples=128_000,
        sequence_length=577,
        texts=(),
        images=50_000,
        unsaid=(
            "the paper does not say how its calibration images were drawn: here with guidance 4 and top-k 2000, of"
            " classes drawn uniformly",
            "its ratios are taken for shares of the parameters of heads and channels",
        ),
    ),
    "figure5": Protocol(
        title="figure 5",
        about="memory and generation speed of pruned models, 64 tokens in",
        models=(LLAMA_7B,),
        by_default=1,
        methods=("paper",),
        ratios=(0.1, 0.2, 0.3, 0.4, 0.5),
        calibration="wikitext2",
        samples=128,
        sequence_length=2048,
        texts=(),
        images=None,
        unsaid=(
            "the paper prints no numbers with figure 5 and does not name the model; it ran on an NVIDIA A100",
            "64 tokens are decoded after the 64 of the prompt, at batch 1",
        ),
    ),
}
"""By the names `numprune reproduce` knows."""
