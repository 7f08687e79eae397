"""Arguments of the registered ops behind the heads and activations of `fokker.denoiser`."""

import torch


def head_arguments(name: str):
    g = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    if name.startswith("gated_activation"):
        x, bias = normal(3, 6, 4), normal(6)
        settings = (0, True, False, 1)
        return (x, bias, normal(3, 3, 4), *settings, 3) if name.endswith("vjp") else (x, bias, *settings)
    if name.startswith("gated_pair"):
        pair, grad = (normal(3, 6, 4), normal(3, 6, 4).transpose(0, 1).contiguous().transpose(0, 1)), normal(3, 6, 4)
        biases = (normal(6), normal(6))
        return (*pair, *biases, grad, 0, 1, 15) if name.endswith("vjp") else (*pair, *biases, 0, 1)
    packed = name.startswith("qkv")
    inputs = (normal(2, 5, 3, 2, 8),) if packed else (normal(2, 5, 2, 8).transpose(1, 2), normal(2, 3, 5, 8))
    tables = (normal(8), normal(8), None, normal(8), normal(5, 4), normal(5, 4))
    settings = (1, 1e-6, packed, 8)  # interleaved or not
    if not packed:  # in part
        tables, settings = (*tables[:4], normal(5, 3), normal(5, 6)[:, ::2]), (1, 1e-6, False, 6)
    if not name.endswith("vjp"):
        return (*inputs, *tables, *settings)
    grads = (normal(2, 2, 5, 8),) * 3 if packed else (normal(2, 2, 5, 8), normal(2, 3, 5, 8))
    wanted = (1 << len(inputs) + 4) - 1 - (1 << len(inputs) + 2)  # all but the bias that is not there
    return (*inputs, *tables, *grads, *settings, wanted)
