r"""Diffusion processes, samplers and likelihoods: every sampler a table of coefficients over one fused step.

    process = sde.VP()  # or VE, SubVP, EDM, RectifiedFlow, ...
    x = sde.sample(model, process, sde.DPMSolver(order=2), (64, 3, 32, 32), steps=20, seed=0, prediction="epsilon")

Parts: the steps themselves (`affine_step`, `gram`, `resample`, `absorb_step`), processes (`VP`, `VE`, `SubVP`, `EDM`,
`RectifiedFlow`, `GeometricBrownian`, `StochasticInterpolant`, `Absorbing`), time grids (`uniform`, `karras`, `log_snr`,
`logit_normal`, `flow_shift`), samplers, one loop that runs them (`sample`), and likelihoods (`log_likelihood`,
`sample_with_log_density`). Noise comes from counters (`fokker.random`), so that a seed means the same samples on every
backend and whatever the batch.
"""

from ._sde_absorb import absorb_step
from ._sde_absorbing import Absorbing, Unmask
from ._sde_geometric import GeometricBrownian, GeometricStep
from ._sde_grids import check_times, flow_shift, karras, log_snr, logit_normal, times_of_sigmas, uniform
from ._sde_interpolants import InterpolantStep, StochasticInterpolant
from ._sde_likelihood import Likelihood, ProbabilityFlow, log_likelihood, sample_with_log_density
from ._sde_loop import State
from ._sde_particles import Resampled, effective_sample_size, resample
from ._sde_processes import EDM, VE, VP, Process, RectifiedFlow, SubVP
from ._sde_sample import Run, sample, table
from ._sde_samplers import (
    DDIM,
    Ancestral,
    ConsistencyTrajectory,
    EulerAncestral,
    EulerMaruyama,
    PredictorCorrector,
    ReverseDiffusion,
    Sampler,
)
from ._sde_samplers_exponential import DEIS, LMS, DPMSolver, UniPC
from ._sde_samplers_sigma import EDMHeun, Euler, Heun
from ._sde_samplers_window import FlowWindow, step_log_prob
from ._sde_step import affine_step, gram

__all__ = [
    "DDIM",
    "DEIS",
    "EDM",
    "LMS",
    "VE",
    "VP",
    "Absorbing",
    "Ancestral",
    "ConsistencyTrajectory",
    "DPMSolver",
    "EDMHeun",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "FlowWindow",
    "GeometricBrownian",
    "GeometricStep",
    "Heun",
    "InterpolantStep",
    "Likelihood",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Process",
    "RectifiedFlow",
    "Resampled",
    "ReverseDiffusion",
    "Run",
    "Sampler",
    "State",
    "StochasticInterpolant",
    "SubVP",
    "UniPC",
    "Unmask",
    "absorb_step",
    "affine_step",
    "check_times",
    "effective_sample_size",
    "flow_shift",
    "gram",
    "karras",
    "log_likelihood",
    "log_snr",
    "logit_normal",
    "resample",
    "sample",
    "sample_with_log_density",
    "step_log_prob",
    "table",
    "times_of_sigmas",
    "uniform",
]
