"""Data for charts."""

import numpy as np
import pandas as pd


def rows(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [None if n is None else generator.normal(0.9, 0.1, n) for n in lengths]


def swept(**columns):
    table = {
        "ratio": [0.0, 0.2, 0.5],
        "decode": [200.0, 220.0, 300.0],
        "decode_low": [190.0, 210.0, 290.0],
        "decode_high": [220.0, 230.0, 310.0],
        "prefill": [1000.0, 1500.0, 2000.0],
        "prefill_low": [900.0, 1400.0, 1900.0],
        "prefill_high": [1100.0, 1600.0, 2100.0],
        "weights": [8e6, 6e6, 4e6],
        "kv": [4096, 4096, 1024],
        "perplexity": [4.0, np.nan, 9.0],
    }
    return pd.DataFrame(table | columns)


def report():
    return pd.DataFrame(
        [
            {"layer": 0, "module": "attention", "units": 8, "kept": 4, "error_before": 0.5, "error_after": 0.2},
            {"layer": 0, "module": "mlp", "units": 8, "kept": 8, "error_before": 0.0, "error_after": 0.0},
        ]
    )


def causal(heads, tokens):
    return np.tril(np.ones((heads, tokens, tokens))) / np.arange(1, tokens + 1)[:, None]


def curves(length=200, names=("30%",)):
    generator = np.random.default_rng(0)
    return [(name, generator.exponential(size=length), generator.random(length) > 0.2) for name in names]
