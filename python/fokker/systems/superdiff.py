r"""SuperDiff: several diffusion models superposed while sampling, by their densities along the way.

M. Skreta, L. Atanackovic, A. J. Bose, A. Tong and K. Neklyudov, "The Superposition of Diffusion Models Using the Ito
Density Estimator", ICLR 2025 (arXiv 2412.17762).

Down the time of a process dx = f x dt + g dW in D dimensions (dtau > 0) samples move along a mean of the scores s_i,

    dx = (-f x + g^2 sum_i kappa_i s_i) dtau + g dW,        sum_i kappa_i = 1,

and each model's log density at the moving sample follows without any derivative of a model (theorem 1, for noise
exactly g and the dx that was realised):

    d log q_i = <s_i, dx> + [D f + f <x, s_i> - g^2 |s_i|^2 / 2] dtau.

"or" (algorithm 1, a sample of any model): kappa = softmax(T log q + l), from the mixture with weights softmax(l) at
T = 1. "and" (proposition 6, a sample equally likely under all): the kappa that make every log q_i rise by the same, one
linear system of M equations a sample in <s_i, s_j> and <s_i, z>. "mean": kappa = 1 / M.

What "and" is worth: its kappa answer the step's own noise and take it away along the differences of scores, so that the
diffusion there is no longer g and the theorem no longer exact. The estimates are equal to rounding; the true densities
are much nearer to one another than under "mean", but not equal, and the estimates' common level is off.

Differences from the paper's code: any number of models in both; the density's trace term is D f (their stochastic
estimator has D^2, which falls out of differences); "and" holds the gaps themselves, so that rounding does not add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._driver import Method, Particles, Run, Step, drive

__all__ = ["SuperDiff"]

TITLE = "superposed diffusion models: samples of any (OR) or of all (AND) of them, by log densities found on the way"
PAPER = "Skreta et al., ICLR 2025, arXiv 2412.17762"
EXAMPLE = 'superdiff.SuperDiff([model_a, model_b], "and").sample(sde.VP(), (64, 3, 32, 32), 500, seed=0)'


class SuperDiff(Method):
    """Samples of a superposition, each with every model's log density.

    Args:
        models: any number of them, called as model(x, t) as in `fokker.sde.sample`.
        mode: "or", "and" or "mean".
        temperature: T of "or", which multiplies the log densities: 0 does not look at them, inf takes the largest.
        bias: l, one number a model, None: zeros. In "or" as above; in "and" log q_i - l_i are kept equal, the bias
            growing by equal steps from 0 at the start.
    """

    weighted = False

    def __init__(
        self, models: Any, mode: str = "or", *, temperature: float = 1.0, bias: Sequence[float] | None = None
    ) -> None:
        super().__init__(models)
        if mode not in ("or", "and", "mean"):
            raise ValueError(f"mode must be 'or', 'and' or 'mean', got {mode!r}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {temperature}")
        self.bias = [0.0] * len(self.models) if bias is None else [float(b) for b in bias]
        if len(self.bias) != len(self.models) or not all(map(math.isfinite, self.bias)):
            raise ValueError(f"bias must be {len(self.models)} finite numbers, one a model, got {bias}")
        self.mode, self.temperature = mode, float(temperature)

    def sample(
        self, process: Any, shape: Sequence[int], steps: int | None = None, seed: Any = None, **options: Any
    ) -> Particles:
        """Samples at the end of the grid, ``carried["log_density"]`` ``(B, M)`` in nats and float64 beside them.

        Options of `fokker.systems._driver.drive`. The densities start as the prior's and are off by order
        steps^{-1/2} a sample.
        """
        return drive(self, process, shape, steps, seed, **options)

    def begin(self, run: Run, x: Tensor) -> None:
        m = len(self.models)
        run.carried["log_density"] = run.process.prior_log_prob(x)[:, None].expand(-1, m).contiguous()
        self.offset = torch.tensor(self.bias, dtype=torch.float64, device="cpu").to(x.device)
        self.equal = torch.full((x.shape[0], m), 1 / m, dtype=torch.float64, device=x.device)
        # differences to the last model: the system of "and" without its constraint
        self.gaps = torch.cat(
            [
                torch.eye(m - 1, dtype=torch.float64, device="cpu"),
                -torch.ones(m - 1, 1, dtype=torch.float64, device="cpu"),
            ],
            1,
        )
        self.gaps = self.gaps.to(x.device)
        self.table = run.table([[1 - k.f * k.dt, *[k.g2 * k.dt / m] * m, math.sqrt(k.g2 * k.dt)] for k in run.steps])

    def step(self, run: Run, k: Step, x: Tensor) -> Tensor:
        log_q, pull = run.carried["log_density"], k.g2 * k.dt
        outputs = run.outputs(k, x)
        if self.mode == "or":
            kappa = self.choose(log_q)
            ends = kappa.new_tensor([1 - k.f * k.dt, math.sqrt(pull)]).expand(len(kappa), 2)
            y, p = run.move(k, x, outputs, torch.cat([ends[:, :1], pull * kappa, ends[:, 1:]], 1))
        else:
            kappa = self.equal
            y, p = run.move(k, x, outputs, self.table, row=k.index)
        # what the step adds to log q but for the kappa's part; <s, dx> + f <x, s> dtau has no x in it
        rest = math.sqrt(pull) * p.sz - 0.5 * pull * p.ss.diagonal(dim1=1, dim2=2) + run.dim * k.f * k.dt
        if self.mode == "and" and len(self.models) > 1:
            share = (k.index + 1) / len(run.steps)
            kappa = self.balance(pull * p.ss, log_q + rest - share * self.offset)
            y = run.add(k, y, x, outputs, pull * (kappa - self.equal))
        run.carried["log_density"] = log_q + rest + pull * (p.ss @ kappa[..., None])[..., 0]
        return y

    def choose(self, log_q: Tensor) -> Tensor:
        """The weights of "or", ``(B, M)``."""
        if self.temperature == math.inf:
            best = log_q + self.offset
            return torch.nn.functional.one_hot(best.argmax(1), best.shape[1]).to(best)
        return torch.softmax(self.temperature * log_q + self.offset, 1)

    def balance(self, gram: Tensor, value: Tensor) -> Tensor:
        """The kappa nearest 1 / M for which gram kappa + value is the same in all entries, sum kappa = 1."""
        difference = self.gaps @ gram @ self.gaps.T
        wrong = self.gaps @ (value + (gram @ self.equal[..., None])[..., 0])[..., None]
        # the least squares solution, which is 0 where scores agree and no kappa could help
        if len(self.gaps) == 1:
            change = torch.where(difference > 0, -wrong / difference, 0.0)
        else:
            scale = 1e-7 * difference.diagonal(dim1=1, dim2=2).sum(1) + 1e-150
            ridge = torch.diag_embed(scale.square()[:, None].expand(-1, len(self.gaps)))
            change = torch.linalg.solve_ex(difference @ difference + ridge, -(difference @ wrong))[0]
        return self.equal + (change.transpose(1, 2) @ self.gaps)[:, 0]
