"""Launch configurations: a committed table, because autotuning is neither reproducible nor interpretable.

At most two elements a thread: float64 holds many live registers. The bound on registers keeps ptxas from spilling a
few for the sake of occupancy (left alone it does); where there is none, ptxas finds an occupancy without spills by
itself. tools/triton_aot.py checks that nothing spills. Not yet measured on a GPU.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Configuration:
    """Elements a block (of density sums: queries, by `columns` data; of group norms: in `columns` channels), and the
    compiler's options."""

    block: int
    num_warps: int
    maxnreg: int | None = None
    columns: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """What a launch or a compilation is given; products are fused with sums only where the source says so."""
        bound = {} if self.maxnreg is None else {"maxnreg": self.maxnreg}
        return {"num_warps": self.num_warps, "enable_fp_fusion": False, **bound}


CONFIGURATIONS: dict[str, dict[torch.dtype, Configuration]] = {
    "bessel_value": {torch.float32: Configuration(256, 4, 128), torch.float64: Configuration(128, 4, 128)},
    "bessel_grad": {torch.float32: Configuration(256, 4, 128), torch.float64: Configuration(128, 4, 168)},
    "bessel_hess": {torch.float32: Configuration(128, 4, 128), torch.float64: Configuration(128, 4, 255)},
    "vmf": {torch.float32: Configuration(256, 4), torch.float64: Configuration(128, 4)},
    "kde": {torch.float32: Configuration(64, 8, None, 32), torch.float64: Configuration(32, 4, None, 32)},
    "kde_products": {torch.float32: Configuration(64, 8, None, 32)},
    "gaussian": {torch.float32: Configuration(64, 4, None, 16), torch.float64: Configuration(32, 4, None, 16)},
    "gaussian_moments": {torch.float32: Configuration(64, 4, None, 8)},
    "distance": {torch.float32: Configuration(64, 4, None, 32)},
    "groups": {torch.float32: Configuration(1024, 4), torch.float64: Configuration(512, 4)},
    "groups_last": {torch.float32: Configuration(1024, 4, None, 32), torch.float64: Configuration(512, 4, 128, 32)},
    "resample": {torch.float32: Configuration(128, 4, 128)},
    # elements of a tile of rows
    "heads": {torch.float32: Configuration(512, 4), torch.float64: Configuration(256, 4)},
    "heads_vjp": {torch.float32: Configuration(512, 4, 128), torch.float64: Configuration(256, 4, 128)},
    "gates": {torch.float32: Configuration(512, 4), torch.float64: Configuration(256, 4)},
    "norms_vjp": {torch.float32: Configuration(2048, 8), torch.float64: Configuration(1024, 8)},
    "losses": {torch.float32: Configuration(1024, 8)},  # float64 arithmetic, whatever is read
    "norms": {torch.float32: Configuration(2048, 8), torch.float64: Configuration(2048, 16)},
    "random": {torch.float32: Configuration(128, 4), torch.float64: Configuration(128, 4)},
}


def configuration(kernel: str, dtype: torch.dtype) -> Configuration:
    """The row of a kernel; float16 and bfloat16 compute in float32."""
    table = CONFIGURATIONS[kernel]
    return table.get(dtype, table[torch.float32])
