"""MixGRPO on small flows: log-probabilities, advantages, the clipped objective, and gradients of windows."""

import math

import pytest
import torch
from systems_problems import F64

from fokker import mixture
from fokker.systems import mixed_ode_sde as mix

STEPS = 6


class Flow(torch.nn.Module):
    """A small velocity network."""

    def __init__(self, dim=3):
        super().__init__()
        torch.manual_seed(1)
        self.inner = torch.nn.Sequential(torch.nn.Linear(dim + 1, 8), torch.nn.Tanh(), torch.nn.Linear(8, dim)).double()

    def forward(self, x, t):
        return self.inner(torch.cat([x, t[:, None]], 1))


class Linear(torch.nn.Module):
    """v = a_k x + c_k, with numbers of its own for each step."""

    def __init__(self, steps):
        super().__init__()
        self.a = torch.nn.Parameter(torch.linspace(0.6, -0.4, steps, dtype=F64))
        self.c = torch.nn.Parameter(torch.linspace(-0.3, 0.5, steps, dtype=F64))

    def forward(self, x, t):
        k = round((1 - float(t[0])) * len(self.a))
        return self.a[k] * x + self.c[k]


def plain_step(x, v, t, t_next, a):
    """Mean and standard deviation of Flow-GRPO's step, as written."""
    dt, std = t_next - t, a * math.sqrt(t / (1 - (t if t < 1 else t_next)))
    mean = x * (1 + std**2 / (2 * t) * dt) + v * (1 + std**2 * (1 - t) / (2 * t)) * dt
    return mean, std * math.sqrt(-dt)


def run(window, model=None, size=(8, 3), steps=STEPS, **more):
    return mix.rollout(model or Flow(), size, steps, window, 1, dtype=F64, **more)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("window", [(0, 3), (2, 4), (0, STEPS), (4, STEPS)])
def test_log_probabilities_of_the_window(window, reduction):
    """Of the stored states, by the densities of the step as written; deterministic steps have none."""
    model = Flow()
    found = run(window, model, reduction=reduction)
    assert found.steps == tuple(range(window[0], min(window[1], STEPS - 1)))
    assert len(found.states) == len(found.steps) + 1
    with torch.no_grad():
        for i, k in enumerate(found.steps):
            t = found.times[k : k + 2].tolist()
            mean, std = plain_step(found.states[i], model(found.states[i], torch.full((8,), t[0], dtype=F64)), *t, 0.7)
            each = torch.distributions.Normal(mean, std).log_prob(found.states[i + 1])
            torch.testing.assert_close(found.log_probs[i], getattr(each, reduction)(1), rtol=1e-9, atol=1e-9)
        x, t = found.states[-1], found.times.tolist()
        for k in range(found.steps[-1] + 1, STEPS):  # Euler's steps to the end
            v = model(x, torch.full((8,), t[k], dtype=F64))
            inside = window[0] <= k < window[1]  # the last step of all, which takes the mean
            x = plain_step(x, v, t[k], t[k + 1], 0.7)[0] if inside else x + v * (t[k + 1] - t[k])
    torch.testing.assert_close(found.x, x, rtol=1e-9, atol=1e-9)


def test_the_windows_gradient_is_the_full_ones():
    """One graph through all steps in plain torch, whose objective is read on the window, against step by step."""
    model = Flow()
    other = Flow()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01 * torch.randn_like(p))
    found = run((1, 4), model)
    a = mix.advantages(torch.randn(8, dtype=F64), 4)
    t = found.times.tolist()
    total = 0.0
    for i, k in enumerate(found.steps):
        x = found.states[i]
        mean, std = plain_step(x, other(x, torch.full((8,), t[k], dtype=F64)), t[k], t[k + 1], 0.7)
        logs = torch.distributions.Normal(mean, std).log_prob(found.states[i + 1]).mean(1)
        rho = (logs - found.log_probs[i]).exp()
        total = total - torch.minimum(rho * a, rho.clamp(0.98, 1.02) * a).mean() / len(found.steps)
    wanted = torch.autograd.grad(total, list(other.parameters()))
    value = mix.loss(other, found, a, clip=0.02)
    torch.testing.assert_close(value, total, rtol=1e-10, atol=1e-12)
    for got in (torch.autograd.grad(value, list(other.parameters())), backward(other, found, a)):
        for g, w in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-12)


def backward(model, found, a):
    model.zero_grad()
    mix.loss(model, found, a, clip=0.02, backward=True)
    return [p.grad for p in model.parameters()]


def expected_reward(model, window, noise, steps):
    """E[-(x - 0.4)^2] at the end of a linear flow from N(0, 1), by its moments."""
    mean, var, t = torch.zeros((), dtype=F64), torch.ones((), dtype=F64), torch.linspace(1, 0, steps + 1).tolist()
    for k in range(steps):
        dt = t[k + 1] - t[k]
        a, b, s = 1.0, dt, 0.0
        if window[0] <= k < window[1] and k < steps - 1:
            std = noise * math.sqrt(t[k] / (1 - (t[k] if t[k] < 1 else t[k + 1])))
            a, b = 1 + std**2 / (2 * t[k]) * dt, (1 + std**2 * (1 - t[k]) / (2 * t[k])) * dt
            s = std * math.sqrt(-dt)
        mean, var = (a + b * model.a[k]) * mean + b * model.c[k], (a + b * model.a[k]) ** 2 * var + s**2
    return -((mean - 0.4).square() + var)


@pytest.mark.parametrize("window", [(0, 2), (1, 3), (0, 4)])
def test_policy_gradients_are_unbiased(window):
    """The objective's gradient at rho = 1 is minus that of the expected reward in the window's own parameters.

    Groups of 2 without division by the standard deviation have A = (r_1 - r_2) / 2, whose expectation is half the
    gradient. 40 independent parts of 2000 samples: |t| with 39 degrees of freedom, up to 8 numbers; 5 is passed by
    chance in 1 of 10^4 tests.
    """
    steps, model = 4, Linear(4)
    wanted = torch.autograd.grad(expected_reward(model, window, 0.5, steps), (model.a, model.c))
    found = mix.rollout(model, (80000, 1), steps, window, 3, noise=0.5, dtype=F64, reduction="sum")
    r = -(found.x[:, 0] - 0.4).square()
    a = mix.advantages(r, 2, scale=False, limit=math.inf)
    parts = []
    for rows in torch.arange(80000).chunk(40):
        part = found._replace(
            x=found.x[rows], states=tuple(s[rows] for s in found.states), log_probs=found.log_probs[:, rows]
        )
        value = -2 * len(found.steps) * mix.loss(model, part, a[rows], clip=0.2)
        parts.append(torch.stack(torch.autograd.grad(value, (model.a, model.c))))
    got, wanted = torch.stack(parts)[:, :, list(found.steps)], torch.stack(wanted)[:, list(found.steps)]
    t = (got.mean(0) - wanted) / (got.std(0) / math.sqrt(40))
    assert float(t.abs().max()) < 5, t
    assert float((wanted / (got.std(0) / math.sqrt(40))).abs().max()) > 10  # it would be seen


def test_training_raises_the_reward():
    """The exact flow of a mixture and a learned shift of it: a dozen iterations move its mass to the rewarded mode."""
    law = mixture.Mixture(
        torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.1, 0.1], dtype=F64), None, "isotropic"
    )
    shift = torch.zeros(1, dtype=F64, requires_grad=True)

    def model(x, t):
        s = t[:, None].clamp(max=0.999)
        d = mixture.posterior_mean(x, law, alpha=1 - s[:, 0], sigma=s[:, 0])
        return (x - d) / s + shift

    slide, optimiser = mix.SlidingWindow(8, 3, interval=2), torch.optim.Adam([shift], lr=0.2)
    rewards = []
    for i in range(12):
        with torch.no_grad():
            found = mix.rollout(model, (128, 1), 8, slide(i), i, dtype=F64)
        r = (found.x[:, 0] > 0).double()
        rewards.append(float(r.mean()))
        optimiser.zero_grad()
        mix.loss(model, found, mix.advantages(r, 16), clip=0.1, backward=True)
        optimiser.step()
    assert rewards[0] < 0.7 and rewards[-1] > 0.9, rewards


def test_divergence():
    found = run((1, 3))
    v, w = torch.randn(2, 8, 3, dtype=F64)
    t = found.times.tolist()
    means = [plain_step(found.states[1], u, t[2], t[3], 0.7) for u in (v, w)]
    exact = torch.distributions.kl_divergence(*(torch.distributions.Normal(*m) for m in means)).mean(1)
    torch.testing.assert_close(mix.divergence(v, w, found, 1), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mix.divergence(v, w, found, 1, kind="flow_grpo"), exact * (t[2] - t[3]))
    model = Flow()
    a = torch.ones(8, dtype=F64)
    plain = mix.loss(model, found, a)
    torch.testing.assert_close(mix.loss(model, found, a, reference=Flow(), weight=0.3), plain)
    assert bool(mix.loss(model, found, a, reference=lambda x, t: x, weight=0.3) > plain)


def test_advantages():
    r = torch.tensor([1.0, 3.0, 5.0, 5.0, 5.0, 5.0])
    found = mix.advantages(r, 3)
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0, 0, 0, 0], dtype=F64))
    torch.testing.assert_close(mix.advantages(r, 3, scale=False), torch.tensor([-2.0, 0, 2, 0, 0, 0], dtype=F64))
    assert float(mix.advantages(torch.tensor([0.0] * 99 + [1.0]), 100).max()) == 5


def test_objective_is_clipped_on_the_side_that_would_gain():
    new = torch.tensor([0.3, -0.3, 0.3, -0.3, 0.0], dtype=F64, requires_grad=True)
    a = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0], dtype=F64)
    found = mix.objective(new, torch.zeros(5, dtype=F64), a, 0.1)
    (slope,) = torch.autograd.grad(found.loss, new)
    torch.testing.assert_close(slope != 0, torch.tensor([False, True, True, False, True]))
    assert float(found.clipped) == pytest.approx(0.8)


def test_sliding_windows():
    slide = mix.SlidingWindow(10, 4, stride=2, interval=3)
    assert [slide(i)[0] for i in (0, 2, 3, 8, 9, 11, 12)] == [0, 0, 2, 4, 6, 6, 0]
    assert all(b - a == 4 and 0 <= a <= 6 for a, b in map(mix.SlidingWindow(10, 4, strategy="random"), range(50)))
    assert len({mix.SlidingWindow(10, 4, strategy="random")(i) for i in range(50)}) == 7
    assert mix.SlidingWindow(10, 4, strategy="frozen")(1000) == (0, 4)
    decay = mix.SlidingWindow(10, 4, interval=8, strategy="decay", rate=0.7, after=2)
    places = [decay(i)[0] for i in range(64)]
    assert [places[:32].count(p) for p in range(7)] == [8, 8, 8, 4, 2, 1, 1]
    assert places[:32] == sorted(places[:32]) and places[32:] == places[:32]


def test_bad_input_is_named():
    found = run((0, 2))
    a = torch.zeros(8, dtype=F64)
    for call, text in (
        (lambda: mix.advantages(torch.zeros(4, 1), 2), r"rewards must have shape \(B,\), got \(4, 1\)"),
        (lambda: mix.advantages(torch.zeros(4), 3), "group must be at least 2 and divide the 4 rewards, got 3"),
        (lambda: mix.loss(Flow(), found, a[:3]), r"advantage must have shape \(8,\), got \(3,\)"),
        (lambda: mix.loss(lambda x, t: x[:, :1], found, a), r"the model must return a tensor of x's shape \(8, 3\)"),
        (lambda: mix.loss(Flow(), run((STEPS - 1, STEPS)), a), "the rollout has no noisy step"),
        (lambda: mix.objective(a, a, a[:2]), "must be alike"),
        (lambda: mix.divergence(a, a, found, 0, kind="kl"), "kind must be 'exact' or 'flow_grpo'"),
        (lambda: mix.SlidingWindow(4, 5), r"size must be in \[1, 4\]"),
        (lambda: mix.SlidingWindow(4, 2, strategy="left"), "strategy must be"),
        (lambda: run((0, 2), callback=print), "callback is taken"),
        (lambda: run((3, 1)), "window must be"),
        (lambda: run((0, 2), lambda x, t: x / 0), "8 of 8 samples are not finite"),
        (lambda: run((0, 2), lambda x, t: x[:2]), "the model must return a tensor of x's shape"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
