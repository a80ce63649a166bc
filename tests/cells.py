"""A measured cell, written by hand."""

from numprune.evaluation.cells import Cell

DENSE = Cell(
    run="r",
    model="m",
    method="dense",
    ratio=0.0,
    seed=0,
    reached=0.0,
    parameters=100,
    bytes=400,
    seconds=None,
    tokens=50,
    nll=1.0,
    perplexity=2.718,
    kl=0.0,
    images=None,
    recognised=None,
    fid=None,
    decode=None,
    device="cpu",
    threads=1,
)
