"""Chebyshev taps in torch, by a sparse matrix in the compressed row format."""

import warnings

import numpy as np
import torch

from benchmarks.baselines.device import DEVICE, tensor


def make(senders: np.ndarray, receivers: np.ndarray, weights: np.ndarray, x: np.ndarray, taps: int):
    """A call that gives the sum of the squares of the taps of x [v, n], and its gradient."""
    starts = np.searchsorted(receivers, np.arange(len(x) + 1))
    starts_at, towards = (
        torch.tensor(x.astype(np.int64), device=DEVICE) for x in (starts, senders)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        size = (len(x), len(x))
        matrix = torch.sparse_csr_tensor(
            starts_at, towards, tensor(weights), size, check_invariants=True
        )
    signal = tensor(x, grad=True)

    def run():
        found = [signal, matrix @ signal]
        while len(found) < taps:
            found.append(2 * (matrix @ found[-1]) - found[-2])
        value = torch.stack([tap.pow(2).sum() for tap in found[:taps]]).sum()
        return value.detach(), torch.autograd.grad(value, signal)[0]

    return run
