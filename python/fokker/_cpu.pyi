"""fokker's CPU kernels, which write into the tensors they are given; by tools/native_stubs.py."""

import collections.abc

import torch

def absorb(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    probability: torch.Tensor,
    mask_id: int,
    temperature: float,
    seed: int,
    seed_tensor: torch.Tensor | None,
    step: int,
    step_tensor: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    first_id: int,
    out: torch.Tensor,
) -> None: ...
def bessel(function: int, v: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None: ...
def bessel_grad(
    function: int, v: torch.Tensor, x: torch.Tensor, dv: torch.Tensor | None, dx: torch.Tensor | None
) -> None: ...
def bessel_hess(
    function: int,
    v: torch.Tensor,
    x: torch.Tensor,
    dvv: torch.Tensor | None,
    dvx: torch.Tensor | None,
    dxx: torch.Tensor | None,
) -> None: ...
def distance_sums(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, sum: torch.Tensor, slope: torch.Tensor | None
) -> None: ...
def gates_blocks(rows: int) -> int: ...
def gaussian_joint(
    x: torch.Tensor,
    mean: torch.Tensor,
    root: torch.Tensor,
    bias: torch.Tensor,
    triangular: bool,
    joint: torch.Tensor | None,
    log_sum: torch.Tensor | None,
    shares: bool,
) -> None: ...
def gaussian_levels(
    x: torch.Tensor,
    alpha: torch.Tensor,
    noise: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    basis: torch.Tensor | None,
    turned: torch.Tensor | None,
    floor: torch.Tensor | None,
    log_sum: torch.Tensor,
    score: torch.Tensor | None,
    posterior: torch.Tensor | None,
    joint: torch.Tensor | None,
    squared: torch.Tensor | None,
    shares: bool,
) -> None: ...
def gaussian_moments(
    weight: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    mass: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
) -> None: ...
def gaussian_pull(
    weight: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    pull: torch.Tensor,
    offset: torch.Tensor | None,
    out: torch.Tensor,
) -> None: ...
def group_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    std: torch.Tensor | None,
    groups: int,
    eps: float,
    activation: int,
    centred: bool,
    last: bool,
    sum: torch.Tensor | None,
    out: torch.Tensor,
    stats: torch.Tensor,
    work: torch.Tensor | None,
) -> None: ...
def group_norm_vjp(
    x: torch.Tensor,
    grad: torch.Tensor,
    grad_sum: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    std: torch.Tensor | None,
    stats: torch.Tensor,
    groups: int,
    activation: int,
    centred: bool,
    last: bool,
    out: torch.Tensor,
    sums: torch.Tensor,
    work: torch.Tensor | None,
) -> None: ...
def group_work(batch: int, channels: int, groups: int, positions: int, last: bool, backward: bool) -> int: ...
def heads_activation(
    x: torch.Tensor,
    value: torch.Tensor | None,
    bias: torch.Tensor | None,
    value_bias: torch.Tensor | None,
    kind: int,
    gated: bool,
    gate_first: bool,
    dim: int,
    out: torch.Tensor,
) -> None: ...
def heads_activation_vjp(
    x: torch.Tensor,
    value: torch.Tensor | None,
    bias: torch.Tensor | None,
    value_bias: torch.Tensor | None,
    grad: torch.Tensor,
    kind: int,
    gated: bool,
    gate_first: bool,
    dim: int,
    to_x: torch.Tensor,
    to_value: torch.Tensor | None,
    sums: torch.Tensor | None,
    partial: torch.Tensor | None,
) -> None: ...
def heads_blocks(rows: int) -> int: ...
def heads_norm_rope(
    x: collections.abc.Sequence[torch.Tensor],
    weights: collections.abc.Sequence[torch.Tensor | None],
    biases: collections.abc.Sequence[torch.Tensor | None],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
    rotary: int,
    out: collections.abc.Sequence[torch.Tensor],
) -> None: ...
def heads_norm_rope_vjp(
    x: collections.abc.Sequence[torch.Tensor],
    weights: collections.abc.Sequence[torch.Tensor | None],
    biases: collections.abc.Sequence[torch.Tensor | None],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
    rotary: int,
    grads: collections.abc.Sequence[torch.Tensor],
    out: collections.abc.Sequence[torch.Tensor | None],
    sums: torch.Tensor | None,
    partial: torch.Tensor | None,
) -> None: ...
def init(tensor: type, parameter: type, cuda_error: object) -> None: ...
def isa() -> str: ...
def kde_sums(
    x: torch.Tensor,
    data: torch.Tensor,
    bandwidth: torch.Tensor,
    bias: torch.Tensor | None,
    values: torch.Tensor | None,
    weight: torch.Tensor | None,
    shift: torch.Tensor | None,
    kernel: int,
    nu: float,
    exclude: int,
    highest: bool,
    weighting: int,
    log_sum: torch.Tensor,
    values_out: torch.Tensor | None,
    square: torch.Tensor | None,
    delta: torch.Tensor | None,
) -> None: ...
def loss_forms(
    vectors: collections.abc.Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    sums: torch.Tensor,
    partial: torch.Tensor | None,
    weights: torch.Tensor | None = None,
    floor: float = 0.0,
    grads: collections.abc.Sequence[torch.Tensor | None] = [],
) -> None: ...
def loss_lognormal(
    vectors: collections.abc.Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    multiplied: bool,
    sums: torch.Tensor | None,
    out: torch.Tensor | None,
    partial: torch.Tensor | None,
) -> None: ...
def nearest_data(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, exclude: int, absolute: bool) -> None: ...
def norm_modulate(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    gate_table: torch.Tensor | None,
    shift: torch.Tensor | None,
    shift_table: torch.Tensor | None,
    scale: torch.Tensor | None,
    scale_table: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    norm: int,
    sum: torch.Tensor | None,
    out: torch.Tensor | None,
) -> None: ...
def norm_modulate_vjp(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    gate_table: torch.Tensor | None,
    scale: torch.Tensor | None,
    scale_table: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    grad_sum: torch.Tensor | None,
    grad: torch.Tensor | None,
    eps: float,
    norm: int,
    weighted: bool,
    to_x: torch.Tensor | None,
    to_branch: torch.Tensor | None,
    to_gate: torch.Tensor | None,
    to_scale: torch.Tensor | None,
    sum_p: torch.Tensor | None,
    sum_pn: torch.Tensor | None,
    sum_gate: torch.Tensor | None,
    partial: torch.Tensor | None,
) -> None: ...
def pixel_norm(x: torch.Tensor, grad: torch.Tensor | None, out: torch.Tensor, eps: float) -> None: ...
def random_fill(
    kind: int,
    seed: int,
    seed_tensor: torch.Tensor | None,
    step: int,
    step_tensor: torch.Tensor | None,
    stream: int,
    sample_ids: torch.Tensor | None,
    first_id: int,
    element_offset: int,
    out: torch.Tensor,
) -> None: ...
def random_sum(
    seed: int,
    seed_tensor: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    first_id: int,
    element_offset: int,
    coefficients: torch.Tensor,
    nodes: torch.Tensor,
    out: torch.Tensor,
) -> None: ...
def resample(
    log_weights: torch.Tensor,
    method: int,
    threshold: float,
    seed: int,
    seed_tensor: torch.Tensor | None,
    step: int,
    step_tensor: torch.Tensor | None,
    stream: int,
    sample_ids: torch.Tensor | None,
    first_id: int,
    ancestors: torch.Tensor,
    new_weights: torch.Tensor,
    size: torch.Tensor,
    work: torch.Tensor | None,
) -> None: ...
def resultant(x: torch.Tensor, weights: torch.Tensor | None, partial: torch.Tensor, out: torch.Tensor) -> None: ...
def row_logsumexp(logits: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, softmax: bool) -> None: ...
def sde_affine(
    x: torch.Tensor,
    terms: collections.abc.Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    row: int,
    row_tensor: torch.Tensor | None,
    noisy: bool,
    seed: int,
    seed_tensor: torch.Tensor | None,
    step: int,
    step_tensor: torch.Tensor | None,
    stream: int,
    sample_ids: torch.Tensor | None,
    first_id: int,
    element_offset: int,
    exponential: bool,
    clip: float | None,
    out: collections.abc.Sequence[torch.Tensor],
    dots: torch.Tensor | None,
    partial: torch.Tensor | None,
) -> None: ...
def sde_affine_vjp(
    x: torch.Tensor,
    terms: collections.abc.Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    row: int,
    row_tensor: torch.Tensor | None,
    noisy: bool,
    seed: int,
    seed_tensor: torch.Tensor | None,
    step: int,
    step_tensor: torch.Tensor | None,
    stream: int,
    sample_ids: torch.Tensor | None,
    first_id: int,
    element_offset: int,
    exponential: bool,
    clip: float | None,
    grads: collections.abc.Sequence[torch.Tensor],
    out: collections.abc.Sequence[torch.Tensor | None],
    sums: torch.Tensor | None,
    partial: torch.Tensor | None,
) -> None: ...
def sde_gram(
    vectors: collections.abc.Sequence[torch.Tensor],
    noisy: bool,
    seed: int,
    seed_tensor: torch.Tensor | None,
    step: int,
    step_tensor: torch.Tensor | None,
    stream: int,
    sample_ids: torch.Tensor | None,
    first_id: int,
    element_offset: int,
    out: torch.Tensor,
    partial: torch.Tensor | None,
) -> None: ...
def set_isa(name: str) -> None: ...
def set_parallel_for(address: int) -> None: ...
def spin(exponentials: bool, wide: bool, n: int) -> float: ...
def vmf_bregman(
    dim: int,
    concentration_p: torch.Tensor,
    concentration_q: torch.Tensor,
    value: torch.Tensor | None,
    d_p: torch.Tensor | None,
    d_q: torch.Tensor | None,
) -> None: ...
def vmf_cosine_gradient(
    dim: int,
    concentration: torch.Tensor,
    mean_resultant: torch.Tensor,
    complement: torch.Tensor,
    w: torch.Tensor,
    one_minus_w: torch.Tensor,
    out: torch.Tensor,
) -> None: ...
def vmf_log_prob(
    x: torch.Tensor, mean_direction: torch.Tensor, concentration: torch.Tensor, out: torch.Tensor
) -> None: ...
def vmf_sample(
    mean_direction: torch.Tensor,
    concentration: torch.Tensor,
    sample_ids: torch.Tensor | None,
    first_id: int,
    seed: int,
    step: int,
    out: torch.Tensor,
    w: torch.Tensor,
    one_minus_w: torch.Tensor,
) -> None: ...
def vmf_sample_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean_direction: torch.Tensor,
    w: torch.Tensor,
    one_minus_w: torch.Tensor,
    grad_mean: torch.Tensor,
    grad_cosine: torch.Tensor,
) -> None: ...
def vmf_scalar(function: int, dim: int, concentration: torch.Tensor, out: torch.Tensor) -> None: ...
def waves(
    t: torch.Tensor, turns: torch.Tensor, phases: torch.Tensor | None, out: torch.Tensor, order: int, gain: float
) -> None: ...
def weighted_cat(a: torch.Tensor, b: torch.Tensor, joined: torch.Tensor, wa: float, wb: float, split: bool) -> None: ...
