"""Arguments of the registered ops of `fokker.sde`, for torch.library's own checks."""

import torch


def step_arguments(name: str):
    """Positional arguments of an op of that name."""
    g = torch.Generator().manual_seed(2)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    x, m = normal(3, 2, 5), normal(3, 2, 5)
    ids, counters = torch.arange(3), (True, 5, 1, 0, 0, 2)  # noise: seed, step, stream, first id, offset
    if name == "sde_resample":
        return normal(3, 8), None, None, ids, 3, 6, None, 5, 1, 4, 0
    if name == "sde_absorb":
        return torch.full((3, 4), 7), normal(3, 4, 7), torch.ones(3), None, None, ids, 7, 1.0, 5, 1, 0
    slots = (None,) * 7
    if name == "sde_gram":
        return x, m, *slots, None, None, ids, *counters
    results = 2 if "vjp" in name else int(name.removeprefix("sde_affine_")[0])
    table = normal(4, 3, *[results] * (results > 1), 5)
    head = (x, table, m, *slots, torch.tensor(2), None, None, ids)
    settings = (-1, *counters, False, 0.8)
    if "vjp" in name:
        return *head, normal(3, 2, 5), normal(3, 2, 5), None, *settings, 2, 0b1000000011
    return *head, *settings
