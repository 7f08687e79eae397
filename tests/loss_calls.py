"""Arguments of the registered ops behind the losses of `fokker.denoiser`."""

import torch


def loss_arguments(name):
    """Arguments of one of the ops, for torch.library's checks."""
    g = torch.Generator().manual_seed(4)
    v = [torch.rand(3, 2, 5, generator=g, dtype=torch.float64) + 0.5 for _ in range(3)]
    if name == "loss_forms":
        return (*v, None, torch.rand(3, 3, 3, generator=g, dtype=torch.float64), 0b111_111_111)
    columns = 3 if name.endswith("slope") else 2
    return (*v, torch.rand(3, columns, generator=g, dtype=torch.float64), True)
