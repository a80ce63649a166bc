"""A network without memory is made by one thread; what others make meanwhile has its weights."""

import threading

import pytest
import torch
from torch import nn

from numprune.models.empty import without_memory


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("places", torch.arange(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_parameter("none", None)


def test_parameters_take_no_memory_and_buffers_are_there():
    with without_memory():
        net = Net()
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert not net.frozen.requires_grad
    assert net.linear.weight.requires_grad
    assert net.none is None
    assert net.places.tolist() == [0, 1, 2]
    assert Net().linear.weight.device.type == "cpu"


def test_other_threads_keep_their_weights():
    inside, made, found = threading.Event(), threading.Event(), {}

    def other():
        inside.wait(5)
        with without_memory():
            found["empty"] = Net()
        found["whole"] = Net()
        made.set()

    thread = threading.Thread(target=other)
    thread.start()
    with without_memory():
        inside.set()
        assert made.wait(5)
        # The other has left, this one is still inside.
        found["own"] = Net()
    thread.join()
    devices = {name: net.linear.weight.device.type for name, net in found.items()}
    assert devices == {"empty": "meta", "whole": "cpu", "own": "meta"}


def test_an_error_leaves_nothing_behind():
    plain = nn.Module.register_parameter
    with pytest.raises(RuntimeError), without_memory():
        raise RuntimeError
    assert nn.Module.register_parameter is plain
    assert Net().linear.weight.device.type == "cpu"
