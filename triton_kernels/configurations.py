"""Launch configurations: (elements a block, warps) of every kernel; a committed table, because autotuning is neither
reproducible nor interpretable.

Chosen for two elements a thread at most (float64 holds many live registers) and checked ahead of time by
tools/triton_aot.py to spill nothing; not yet measured on a GPU.
"""

import torch

CONFIGURATIONS: dict[str, dict[torch.dtype, tuple[int, int]]] = {
    "bessel_value": {torch.float32: (256, 4), torch.float64: (128, 4)},
    "bessel_grad": {torch.float32: (256, 4), torch.float64: (128, 4)},
    "bessel_hess": {torch.float32: (128, 4), torch.float64: (128, 4)},
    "vmf": {torch.float32: (256, 4), torch.float64: (128, 4)},
}


def configuration(kernel: str, dtype: torch.dtype) -> tuple[int, int]:
    """(elements a block, warps); float16 and bfloat16 compute in float32."""
    table = CONFIGURATIONS[kernel]
    return table.get(dtype, table[torch.float32])
