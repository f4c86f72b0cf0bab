"""Where torch computes: on the GPU where there is one, else on the cores that we may use."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_num_threads(len(os.sched_getaffinity(0)))


def tensor(x: np.ndarray, grad: bool = False) -> torch.Tensor:
    """A copy of x on the device."""
    return torch.tensor(np.asarray(x), device=DEVICE, requires_grad=grad)


def value_and_grads(function: Callable[..., torch.Tensor], *arguments: np.ndarray) -> Callable:
    """A call that gives (value, gradients of all arguments); arguments are placed once."""
    placed = [tensor(np.asarray(x, np.float32), grad=True) for x in arguments]

    def run() -> tuple[Any, tuple[torch.Tensor, ...]]:
        value = function(*placed)
        return value.detach(), torch.autograd.grad(value, placed)

    return run


def compiled(**calls: tuple[Callable[..., Any], Callable[[Callable[..., Any]], Callable]]):
    """Name -> call, from name -> (function, how a call is made of it).

    On a GPU there is a second one of each, under torch.compile.
    """
    made = {name: make(function) for name, (function, make) in calls.items()}
    if DEVICE.type == "cuda":
        for name, (function, make) in calls.items():
            made[f"{name}, torch.compile"] = make(torch.compile(function))
    return made
