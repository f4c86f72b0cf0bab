"""torch.nn.GRU in both directions; on a GPU that is cuDNN's."""

from collections.abc import Mapping

import numpy as np
import torch

from benchmarks.baselines.device import DEVICE, tensor


def make(x: np.ndarray, params: Mapping[str, np.ndarray], cotangent: np.ndarray):
    """A call that gives output, gradient of the input, and of the forward recurrent kernel."""
    features = cotangent.shape[-1] // 2
    net = torch.nn.GRU(x.shape[-1], features, batch_first=True, bidirectional=True).to(DEVICE)
    for side, ending in (("forward", ""), ("backward", "_reverse")):
        for ours, theirs in (
            ("input_kernel", "weight_ih_l0"),
            ("recurrent_kernel", "weight_hh_l0"),
            ("input_bias", "bias_ih_l0"),
            ("recurrent_bias", "bias_hh_l0"),
        ):
            getattr(net, theirs + ending).data = tensor(params[f"{side}_{ours}"].T.copy())
    net.flatten_parameters()
    given, weight = tensor(x, grad=True), tensor(cotangent)
    wanted = [given, *net.parameters()]
    place = 1 + [name for name, _ in net.named_parameters()].index("weight_hh_l0")

    def run():
        out, _ = net(given)
        grads = torch.autograd.grad((out * weight).sum(), wanted)
        return out.detach(), grads[0], grads[place].T

    return run
