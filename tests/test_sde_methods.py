"""Samplers of fokker.sde with states or outputs of their own: masked tokens, noisy windows of a flow, jumps, signs."""

import itertools
import math

import pytest
import torch
from sde_problems import KS_LIMIT, denoiser, ks, normal_cdf

from fokker import mixture, sde

LAW = mixture.Mixture(
    torch.tensor([[-0.9], [0.8]], dtype=torch.float64), torch.tensor([0.2, 0.12], dtype=torch.float64),
    torch.tensor([0.4, 0.6], dtype=torch.float64), "isotropic",
)  # fmt: skip


def cdf_at(process, t):
    a, s = float(process.alpha(t)), float(process.sigma(t))
    stds = torch.sqrt(a * a * LAW.covariance + s * s)
    return lambda u: (LAW.weights * normal_cdf(u[:, None], a * LAW.means[:, 0], stds)).sum(1)


# ---- masked tokens --------------------------------------------------------------------------------------------------
V, L, MASK = 3, 6, 3
ABSORBING = sde.Absorbing(MASK)


def chain(seed=0):
    """A Markov chain on V tokens: first law, transitions."""
    g = torch.Generator().manual_seed(seed)
    first = torch.softmax(torch.randn(V, generator=g, dtype=torch.float64), 0)
    return first, torch.softmax(1.5 * torch.randn(V, V, generator=g, dtype=torch.float64), 1)


def exact_logits(tokens, t=None):
    """log P(token | the open ones) of the chain at every position, by forward and backward messages."""
    first, step = chain()
    seen = torch.where(tokens[..., None] == MASK, 1.0, torch.nn.functional.one_hot(tokens.clamp(max=V - 1), V).double())
    forward, backward = [first.expand(len(tokens), V)], [torch.ones(len(tokens), V, dtype=torch.float64)]
    for i in range(L - 1):
        forward.append((forward[-1] * seen[:, i]) @ step)
        backward.insert(0, (backward[0] * seen[:, L - 1 - i]) @ step.T)
    joint = torch.stack([f * b for f, b in zip(forward, backward, strict=True)], 1)
    return torch.log(joint / joint.sum(-1, keepdim=True))


def probability(tokens):
    first, step = chain()
    p = first[tokens[:, 0]]
    for i in range(L - 1):
        p = p * step[tokens[:, i], tokens[:, i + 1]]
    return p


def frequencies(tokens):
    code = (tokens * V ** torch.arange(L)).sum(1)
    return torch.bincount(code, minlength=V**L).double() / len(tokens)


def every_sequence():
    code = torch.arange(V**L)
    return torch.stack([(code // V**i) % V for i in range(L)], 1)


def test_masked_diffusion_has_the_law():
    """Opened one or two at a time the chain is exact but for tokens opened together: 10 000 sequences of 729.

    The total variation of multinomial counts from their law is ``noise``; coarse steps open tokens together, and err.
    """
    truth = probability(every_sequence())
    assert float(truth.sum()) == pytest.approx(1, abs=1e-12)
    n = 10_000
    gaps = []
    for steps in (2, 64):
        x = sde.sample(exact_logits, ABSORBING, sde.Unmask(), (n, L), steps, 3)
        assert bool((x != MASK).all()) and bool((x < V).all())
        gaps.append(float((frequencies(x) - truth).abs().sum()) / 2)
    noise = math.sqrt(2 / math.pi) / 2 * float(torch.sqrt(truth / n).sum())
    assert gaps[1] < noise + 0.015 and gaps[0] > noise + 0.04, (gaps, noise)


def test_tokens_opened_together_are_of_order_one():
    """What the samples err by: two positions open in one step with probability sum (m - m')^2, 1 / n in the limit."""
    n = 20_000
    for schedule, steps in (("linear", 8), ("linear", 32), ("cosine", 16)):
        p = sde.Absorbing(MASK, schedule)
        closed = [torch.ones(n, 2, dtype=torch.bool)]
        uniform = lambda x, t: torch.zeros(*x.shape, V)  # noqa: E731
        sde.sample(uniform, p, sde.Unmask(), (n, 2), steps, 7, callback=lambda s, c=closed: c.append(s.x == MASK))
        together = sum(float((a & ~b).all(1).double().mean()) for a, b in itertools.pairwise(closed))
        m = p.masked(sde.uniform(p, steps))
        chance = float(m.diff().square().sum())
        assert abs(together - chance) < 5 * math.sqrt(chance / n)
        assert chance * steps < 1.3


def test_network_is_called_only_where_a_token_opens():
    calls = []

    def model(tokens, t):
        calls.append(float(t[0]))
        return exact_logits(tokens)

    cached = sde.sample(model, ABSORBING, sde.Unmask(), (2, L), 200, 5, full=True)
    assert cached.calls == len(calls) <= 2 * L
    calls.clear()
    every = sde.sample(model, ABSORBING, sde.Unmask(cache=False), (2, L), 200, 5, full=True)
    assert every.calls == len(calls) == 200 and torch.equal(every.x, cached.x)
    assert calls[0] == 1.0 and calls == sorted(calls, reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_masks_over_time(schedule):
    """What is open after each step is Bernoulli of 1 - m(t): within five standard errors."""
    p = sde.Absorbing(MASK, schedule)
    n, shares = 4000, []
    sde.sample(
        exact_logits,
        p,
        sde.Unmask(),
        (n, L),
        8,
        1,
        callback=lambda s: shares.append((s.time, float((s.x == MASK).double().mean()))),
    )
    for t, share in shares:
        m = float(p.masked(t))
        assert abs(share - m) <= 5 * math.sqrt(m * (1 - m) / (n * L)) + 1e-12
    x0 = torch.randint(0, V, (n, L))
    noisy = p.diffuse(x0, torch.full((n,), 0.3), seed=2)
    m = float(p.masked(0.3))
    assert abs(float((noisy == MASK).double().mean()) - m) < 5 * math.sqrt(m * (1 - m) / (n * L))
    assert bool(((noisy == x0) | (noisy == MASK)).all())
    t = torch.tensor([0.2, 0.6], dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(p.masked(t).sum(), t)[0]
    t = t.detach()
    torch.testing.assert_close(p.rate(t), slope / (1 - p.masked(t)))
    torch.testing.assert_close(p.reverse_rate(t), slope / p.masked(t))
    assert float(p.opening(0.5, 0.0)) == 1
    torch.testing.assert_close(
        p.prior_log_prob(torch.tensor([[3, 3], [3, 0]])), torch.tensor([0.0, -math.inf]).double()
    )


def test_masked_restart_split_and_prompt():
    states = []
    whole = sde.sample(exact_logits, ABSORBING, sde.Unmask(), (5, L), 9, 4, callback=states.append)
    for s in states[:-1]:
        assert torch.equal(sde.sample(exact_logits, ABSORBING, sde.Unmask(), (5, L), 9, 4, start=s), whole)
    part = sde.sample(exact_logits, ABSORBING, sde.Unmask(), (2, L), 9, 4, sample_ids=[3, 4])
    assert torch.equal(part, whole[3:])
    prompt = torch.full((5, L), MASK)
    prompt[:, 2] = 1
    assert bool((sde.sample(exact_logits, ABSORBING, sde.Unmask(), (5, L), 9, 4, start=prompt)[:, 2] == 1).all())
    drawn, greedy = (
        probability(sde.sample(exact_logits, ABSORBING, sde.Unmask(temperature=v), (60, L), 9, 4)) for v in (1.0, 0.0)
    )
    assert float(greedy.mean()) > 1.5 * float(drawn.mean())

    def close_first(state):
        return torch.where(torch.arange(L) == 0, MASK, state.x) if state.step < 9 else None

    held = sde.sample(exact_logits, ABSORBING, sde.Unmask(), (5, L), 9, 4, callback=close_first)
    assert bool((held != MASK).all())
    with pytest.raises(ValueError, match=r"shape must be \(B, L\)"):
        sde.sample(exact_logits, ABSORBING, sde.Unmask(), (5,), 9, 4)
    with pytest.raises(ValueError, match="start must be int64"):
        sde.sample(exact_logits, ABSORBING, sde.Unmask(), (5, L), 9, 4, start=torch.zeros(5, L))


# ---- windows of noise in a flow -------------------------------------------------------------------------------------
FLOW = sde.RectifiedFlow()


def flow_model(x, t):
    return denoiser(FLOW, LAW, "flow")(x, t)


@pytest.mark.parametrize("kind", ["flow", "dance", "cps"])
def test_window_steps_are_the_published_ones(kind):
    """One step each from its paper's formula, with velocity v and noise z."""
    t = [0.8, 0.6, 0.3]
    x, v, z, a = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64), None, 0.7
    sampler = sde.FlowWindow(a, (1, 2), kind, last_mean=False)
    out = sde.sample(
        lambda x, t: v, FLOW, sampler, (4, 3), times=t, start=x, start_step=1, dtype=torch.float64, prediction="flow",
        noise=lambda s, k, like: torch.full_like(like, 0.5),
    )  # fmt: skip
    z, s, n = 0.5, 0.6, 0.3
    dt = n - s
    if kind == "flow":
        k = a * math.sqrt(s / (1 - s))
        expected = x * (1 + k * k * dt / (2 * s)) + v * (1 + k * k * (1 - s) / (2 * s)) * dt + k * math.sqrt(-dt) * z
    elif kind == "dance":
        x0 = x - s * v
        score = -(x - (1 - s) * x0) / s**2
        expected = x + v * dt - 0.5 * a * a * score * dt + a * math.sqrt(-dt) * z
    else:
        std = n * math.sin(a * math.pi / 2)
        expected = (1 - n) * (x - s * v) + math.sqrt(n * n - std * std) * (x + (1 - s) * v) + std * z
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_probabilities_of_steps(reduction):
    """Those of the run are those of the stored steps, and of torch's Normal; outside the window there are none."""
    sampler, states = sde.FlowWindow(0.7, (2, 5)), []
    x0 = FLOW.prior_sample(6, (1,), seed=1, dtype=torch.float64)
    out = sde.sample(
        flow_model, FLOW, sampler, (6, 1), 8, 3, start=x0, dtype=torch.float64, prediction="flow", full=True,
        log_prob_reduction=reduction, callback=lambda s: states.append(s.x),
    )  # fmt: skip
    assert out.log_prob_steps == (2, 3, 4) and out.log_probs.shape == (3, 6)
    path = [x0, *states]
    for row, step in zip(out.log_probs, out.log_prob_steps, strict=True):
        v = flow_model(path[step], out.times[step].expand(6))
        again = sde.step_log_prob(path[step], path[step + 1], v, sampler, out.times, step, reduction=reduction)
        torch.testing.assert_close(again, row, rtol=1e-9, atol=1e-9)
        a, b, s = sampler.step(out.times.tolist(), step)
        law = torch.distributions.Normal(a * path[step] + b * v, s)
        torch.testing.assert_close(row, law.log_prob(path[step + 1]).sum(1), rtol=1e-9, atol=1e-9)
    for step in (0, 6):
        with pytest.raises(ValueError, match=f"step {step} has no noise"):
            sde.step_log_prob(x0, x0, x0, sampler, out.times, step)
    with pytest.raises(ValueError, match=r"step must be in \[0, 8\)"):
        sde.step_log_prob(x0, x0, x0, sampler, out.times, 8)
    whole = sde.sample(
        flow_model, FLOW, sde.FlowWindow(0.7), (6, 1), 8, 3, prediction="flow", full=True, dtype=torch.float64
    )
    assert whole.log_prob_steps == tuple(range(7))  # the last step returns its mean


def test_gradient_of_a_step_s_log_probability():
    """d log p / dv = (x' - mean) / S^2 (1 + k^2 (1 - t) / (2 t)) dt / D, the policy gradient's weight."""
    sampler = sde.FlowWindow(0.7, last_mean=False)
    t = [0.8, 0.6]
    x, y, v = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    v.requires_grad_()
    sde.step_log_prob(x, y, v, sampler, t, 0).sum().backward()
    a, b, s = sampler.step(t, 0)
    torch.testing.assert_close(v.grad, (y - a * x - b * v.detach()) / s**2 * b / 4, rtol=1e-10, atol=1e-12)


def test_window_keeps_the_law():
    """8000 samples from pure noise, noise in the first half: 1e-4 false alarms and 0.01 of the steps' own bias."""
    n = 8000
    sampler = sde.FlowWindow(0.7, (0, 60))
    x = sde.sample(lambda x, t: flow_model(x, t).to(x), FLOW, sampler, (n, 1), 120, 2, prediction="flow")
    assert ks(x[:, 0], cdf_at(FLOW, 0.0)) < KS_LIMIT + 0.01 * math.sqrt(n)


# ---- jumps ----------------------------------------------------------------------------------------------------------
def transport(process):
    """The flow's own map from t to s in one dimension: quantile to quantile."""

    def jump(x, t, s):
        u = cdf_at(process, float(t[0]))(x[:, 0].double())
        low, high = torch.full_like(u, -600.0), torch.full_like(u, 600.0)
        goal = cdf_at(process, float(s[0]))
        for _ in range(70):
            middle = (low + high) / 2
            below = goal(middle) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low[:, None].to(x)

    return jump


@pytest.mark.parametrize("name", ["edm", "vp"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_consistency_trajectories_are_exact_at_any_step_count(name, gamma):
    """Three jumps by the exact map, from the law at t_max: 4000 samples, 1e-4 false alarms."""
    p = {"edm": sde.EDM(0.05, 10.0), "vp": sde.VP(t_min=0.01)}[name]
    t = sde.karras(p, 3)
    n = 4000
    start = mixture.sample(LAW, (n,), alpha=float(p.alpha(p.t_max)), sigma=float(p.sigma(p.t_max)), seed=6)
    x = sde.sample(
        transport(p), p, sde.ConsistencyTrajectory(gamma), (n, 1), times=t, seed=4, start=start, dtype=torch.float64
    )
    assert ks(x[:, 0], cdf_at(p, float(t[-1]))) < KS_LIMIT


@pytest.mark.parametrize("name", ["edm", "vp"])
def test_jump_and_residual_outputs_are_one(name):
    p = {"edm": sde.EDM(0.05, 10.0), "vp": sde.VP(t_min=0.01)}[name]
    jump = transport(p)

    def residual(x, t, s):
        a, b = (float(p.alpha(v[0])) for v in (t, s))
        r = float(p.ratio(s[0])) / float(p.ratio(t[0]))
        return (jump(x, t, s) / b - r * x / a) / (1 - r)

    call = {"steps": 3, "seed": 4, "dtype": torch.float64, "grid": "karras"}
    x = sde.sample(jump, p, sde.ConsistencyTrajectory(0.6), (5, 1), **call)
    y = sde.sample(residual, p, sde.ConsistencyTrajectory(0.6, "residual"), (5, 1), **call)
    torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


# ---- multiplicative noise -------------------------------------------------------------------------------------------
def test_geometric_steps_keep_signs_and_repeat():
    p = sde.GeometricBrownian(sigma=0.8)
    x0 = torch.tensor([[1.5, -0.7, 0.0]])
    model = lambda x, t: 0.3 * x  # noqa: E731
    x = sde.sample(model, p, sde.GeometricStep(), (1, 3), 20, 0, start=x0)
    assert bool((x.sign() == x0.sign()).all()) and bool(x.isfinite().all())
    drawn = []

    def noise(stream, number, like):
        drawn.append(number)
        return torch.ones_like(like)

    sampler = sde.GeometricStep(repeats=2, delta=0.01, anneal=0.5, final=2, last_mean=False)
    x = sde.sample(model, p, sampler, (1, 3), 3, 0, start=x0.double(), dtype=torch.float64, noise=noise)
    assert drawn == list(range(6))
    y, c, v = x0.double(), 1.0, 0.64
    for k in range(8):
        z = 0.0 if k >= 6 else c * 0.1 * 0.8
        y = y * torch.exp(0.01 * v * 0.3 * y - 0.01 * (p.mu - 1.5 * v) + z)
        c *= 0.5
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
