"""The kernel functions of density sums in Triton, as csrc/math/kde_kernel.h: exponent, weight and gradient weight."""

import triton
import triton.language as tl

from .elementary import const, divide, log1p, square_root

# The order of math::Kernel; what is not here has no Triton kernel.
KERNELS = (
    "gaussian", "laplace", "exponential", "matern32", "matern52", "student_t", "epanechnikov", "tophat", "linear",
)  # fmt: skip


@triton.jit
def pair(q, nu, p, KERNEL: tl.constexpr):
    """E, F and G of a pair at q = z^2 (laplace: z); outside of a support E is -inf and F 0, and a NaN stays."""
    one = const(q, 1.0)
    zero = const(q, 0.0)
    if KERNEL == 0:
        return -0.5 * q, one, one
    elif KERNEL == 1:
        return -q, one, one
    elif KERNEL == 5:
        return -p * log1p(divide(q, zero + nu)), one, divide(zero + 2.0 * p, nu + q)
    elif KERNEL == 6:
        return support(q), outside(q, 1.0 - q), tl.where(q < 1.0, 2.0, zero)
    elif KERNEL == 7:
        return support(q), outside(q, one), zero
    else:
        z = square_root(q)
        inverse = tl.where(z > 0.0, divide(one, tl.where(z > 0.0, z, 1.0)), 0.0)  # not smooth at 0: gradient 0
        if KERNEL == 2:
            return -z, one, inverse
        elif KERNEL == 3:
            u = 1.7320508075688772935 * z
            return -u, 1.0 + u, 3.0 * one
        elif KERNEL == 4:
            u = 2.2360679774997896964 * z
            return -u, 1.0 + u + u * u * 0.33333333333333333333, 1.6666666666666666667 * (1.0 + u)
        else:
            return support(q), outside(q, 1.0 - z), tl.where(q < 1.0, inverse, 0.0)


@triton.jit
def support(q):
    """0 inside of the support, and for NaN; -inf outside."""
    return tl.where(q >= 1.0, float("-inf"), const(q, 0.0))


@triton.jit
def outside(q, inside):
    """`inside` for q < 1, else 0; a NaN stays."""
    return tl.where(q < 1.0, inside, tl.where(q >= 1.0, 0.0, q))
