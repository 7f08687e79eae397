"""Arguments and judges of the tests of group norms."""

import torch


def group_arguments(name: str):
    """Positional arguments of an op of that name."""
    g = torch.Generator().manual_seed(2)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    x, other = normal(2, 6, 3, 2), normal(2, 6, 3, 2)
    parameters = (normal(6), normal(6), normal(2, 6), normal(2, 6), None)
    settings = (3, 1e-5, 1, True)
    if name.endswith("_vjp"):
        return x, other, None, *parameters, torch.ones(2, 3, 2, dtype=torch.float64), *settings
    return (x, other, *parameters, *settings) if name.endswith("_sum") else (x, *parameters, *settings)
