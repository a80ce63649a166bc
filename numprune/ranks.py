"""Several processes at one task: each runs some of the calibration sequences, and what they sum is summed over all.

`torchrun` starts them and torch.distributed joins them. Every process does the same but for what is shared here:
sequences, of which each runs its own, and modules, of which each solves its own. All have the same sums at any time,
and so come to the same decisions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from numprune.errors import InputError, NumpruneError

K, V, T = TypeVar("K"), TypeVar("V"), TypeVar("T")

STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, or another starter of processes, tells each of them in its environment."""
GATHERING = timedelta(minutes=10)
"""To wait for all processes to be there."""
PATIENCE = timedelta(days=1)
"""To wait for another process, which may draw text or write; one that ends is noticed at once."""


class Ranks:
    """The processes at a task, as one of them sees them.

    Attributes:
        rank: of this process, from 0.
        count: of all.
        here: of those on this machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, here: int = 1, store: distributed.Store | None = None) -> None:
        self.rank, self.count, self.here, self._store = rank, count, here, store

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def own(self, items: Any) -> Any:
        """The sequences or windows that this process runs where sums alone are wanted; with fewer than processes, some
        run none."""
        return items[self.rank :: self.count]

    def batches(self, count: int, size: int) -> list[torch.Tensor]:
        """The batches that this process runs of so many sequences, one batch at least, as indices (sequences,) each.

        They are those that one process would run, so that sums differ in the last bits of float64 alone, as long as
        there are as many as processes; else they are smaller.

        Args:
            size: sequences at once at most.

        Raises:
            InputError: there are fewer sequences than processes.
        """
        if count < self.count:
            raise InputError(
                f"{count} sequences cannot be shared by {self.count} processes; give at least {self.count} samples, or"
                " start fewer processes."
            )
        return list(self.own(torch.arange(count).split(min(size, count // self.count))))

    def share_modules(self, work: Mapping[K, float]) -> list[K]:
        """The modules that this process solves, in their order, when each takes so much work: the longest were given
        away first, always to the process that had least."""
        loads, mine = [0.0] * self.count, set()
        for key in sorted(work, key=lambda each: -work[each]):
            to = loads.index(min(loads))
            loads[to] += work[key]
            if to == self.rank:
                mine.add(key)
        return [key for key in work if key in mine]

    def add(self, *sums: torch.Tensor) -> None:
        """Add, in place, what the other processes have of each of these tensors."""
        if not self.alone:
            for each in sums:
                self._together(lambda each=each: distributed.all_reduce(each))

    def total(self, count: int) -> int:
        """The sum of a number over all processes."""
        told = torch.tensor([int(count)])
        self.add(told)
        return int(told)

    def exchange(self, own: Mapping[K, V]) -> dict[K, V]:
        """What all processes have of something by key; tensors of others come on the CPU."""
        if self.alone:
            return dict(own)
        parts: list[Any] = [None] * self.count
        sent = {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in own.items()}
        self._together(lambda: distributed.all_gather_object(parts, sent))
        return {key: value for part in parts for key, value in part.items()}

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them."""
        if self.alone:
            return make()
        made = [make() if self.first else None]
        self._together(lambda: distributed.broadcast_object_list(made, src=0))
        return made[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.total(0)

    def first_to_fail(self) -> bool:
        """Whether no other process has failed before: what they say of it is said once."""
        if self._store is None:
            return True
        # Where the store is gone, so is the process that would have told.
        with suppress(RuntimeError):
            key = f"numprune failed {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
            return self._store.compare_set(key, "", str(self.rank)) == str(self.rank).encode()
        return True

    def _together(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NumpruneError(
                f"Process {self.rank} of {self.count} lost another one, which ended or cannot be reached"
                f" ({str(error).splitlines()[0]}); start all again."
            ) from error


ALONE = Ranks()
_joined = ALONE


def joined() -> Ranks:
    """The processes that this one has joined; itself alone outside of `join_ranks`."""
    return _joined


def started_by_others() -> bool:
    """Whether torchrun, or another starter, has started several processes for one task."""
    return all(name in os.environ for name in STARTED) and os.environ["WORLD_SIZE"] != "1"


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Work with the other processes that torchrun has started, inside of this context; alone where there are none.

    Calibration, scoring, pruning and perplexity then share their sequences and modules, so that all processes must call
    the same functions with the same arguments. Every one has the same result and the first one (`Ranks.first`) should
    write it. With GPUs, process i of a machine works on GPU i of it.

    Raises:
        InputError: there are more processes than GPUs.
        NumpruneError: the others cannot be reached.
    """
    global _joined
    if not started_by_others():
        yield ALONE
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    _take_device(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), here)
    try:
        store, rank, count = next(iter(distributed.rendezvous("env://", timeout=GATHERING)))
        distributed.init_process_group(store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise NumpruneError(
            f"The processes cannot be joined ({str(error).splitlines()[0]}); start them with torchrun."
        ) from error
    _joined = Ranks(rank, count, here, store)
    try:
        yield _joined
    finally:
        _joined = ALONE
        distributed.destroy_process_group()


def _take_device(local: int, here: int) -> None:
    """Make the GPU of this process, by its number on the machine, the one that "cuda" means."""
    gpus = torch.cuda.device_count()
    if not gpus:
        return
    if here > gpus:
        raise InputError(
            f"{here} processes were started on {gpus} GPUs; start one for each, or hide the GPUs"
            " (CUDA_VISIBLE_DEVICES=) to work on the CPU."
        )
    torch.cuda.set_device(local)
