"""fokker.systems.absorbing on a Markov chain of six tokens, whose joint law and conditionals are known."""

import itertools
import math

import pytest
import torch
from test_sde_methods import MASK, L, V, exact_logits, frequencies, probability

from fokker import sde
from fokker.systems import absorbing

PROCESS = sde.Absorbing(MASK)
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=L)))
LAW = probability(SEQUENCES)


def law_by_code():
    return torch.zeros(V**L, dtype=torch.float64).index_add(0, (SEQUENCES * V ** torch.arange(L)).sum(1), LAW)


def total_variation(tokens):
    return 0.5 * float((frequencies(tokens) - law_by_code()).abs().sum())


def untrue(tokens):
    """Conditionals of no joint law."""
    w = torch.sin(torch.arange((V + 1) * L * V, dtype=torch.float64) ** 1.5).reshape(L, V + 1, V)
    felt = torch.stack([w[i, tokens[:, i]] for i in range(L)], 1)
    return felt.sum(1, keepdim=True) + 2 * felt.roll(1, 1)


def test_concrete_score_is_the_ratio_of_the_noisy_law():
    t = 0.3
    x = torch.tensor([[MASK, 1, MASK, 0, MASK, 2], [2, MASK, MASK, MASK, MASK, MASK]])

    def noisy(x):
        closed = x == MASK
        fits = (closed | (x == SEQUENCES)).all(1)
        m = float(PROCESS.masked(t))
        return float(LAW[fits].sum()) * m ** int(closed.sum()) * (1 - m) ** int((~closed).sum())

    found = absorbing.concrete_score(exact_logits, x, PROCESS, t)
    for b, i, v in itertools.product(range(2), range(L), range(V)):
        other = x[b].clone()
        other[i] = v
        wanted = noisy(other) / noisy(x[b]) if x[b, i] == MASK else 0.0
        assert float(found[b, i, v]) == pytest.approx(wanted, rel=1e-9)


def test_any_order_is_the_likelihood_in_every_order():
    g = torch.Generator().manual_seed(1)
    x = SEQUENCES[::50]
    orders = torch.stack([torch.randperm(L, generator=g) for _ in x])
    torch.testing.assert_close(absorbing.any_order(exact_logits, x, MASK, orders), -torch.log(LAW[::50]))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bounds_are_one(schedule):
    """Of conditionals of no joint law: each estimate's mean is that over all orders (4 standard errors, 6e-5 each)."""
    process, x = sde.Absorbing(MASK, schedule), SEQUENCES[123:124]
    orders = torch.tensor(list(itertools.permutations(range(L))))
    wanted = float(absorbing.any_order(untrue, x.expand(len(orders), L), MASK, orders).mean())
    many = x.expand(4000, L)

    def log_score(y, t):
        m = process.masked(t)[:, None, None]
        return torch.log((1 - m) / m) + untrue(y).log_softmax(-1)

    estimates = {
        "lambda_dce": absorbing.lambda_dce(untrue, many, MASK, seed=1),
        "t_dce": absorbing.t_dce(untrue, many, process, seed=2),
        "dse": absorbing.dse(log_score, many, process, seed=2),
    }
    torch.testing.assert_close(estimates["dse"], estimates["t_dce"], rtol=1e-9, atol=1e-9)
    for name, values in estimates.items():
        assert abs(float(values.mean()) - wanted) < 4 * float(values.std()) / len(values) ** 0.5, name


def test_score_entropy_is_least_at_the_true_score():
    x = SEQUENCES[5:6].expand(2000, L)
    place = {"seed": 3}

    def log_score(scale):
        def score(y, t):
            m = PROCESS.masked(t)[:, None, None]
            return torch.log((1 - m) / m) + exact_logits(y) + scale

        return score

    best, *others = (float(absorbing.dse(log_score(k), x, PROCESS, **place).mean()) for k in (0.0, -0.3, 0.3))
    assert best < min(others)


def test_joint_law():
    """Total variation falls with the steps to what 8000 draws of the law itself leave; in any order it is there."""
    n = 8000
    floor = float(torch.sqrt(2 * LAW * (1 - LAW) / (math.pi * n)).sum()) / 2
    found = [
        total_variation(absorbing.sample(exact_logits, PROCESS, (n, L), steps, seed=7)) for steps in (1, 3, 10, 40)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.1 and found[3] < 1.25 * floor
    exact = absorbing.sample_any_order(exact_logits, MASK, (n, L), seed=7)
    assert total_variation(exact) < 1.15 * floor
    pairs = absorbing.sample_any_order(exact_logits, MASK, (n, L), seed=7, per_call=3)
    assert 1.15 * floor < total_variation(pairs) < found[0]


def test_calls_are_those_expected():
    """Mean over 150 runs (4 standard errors); a call that is left out changes nothing."""
    steps, calls = 12, []
    for seed in range(150):
        run = absorbing.sample(exact_logits, PROCESS, (1, L), steps, seed=seed, full=True)
        calls.append(float(run.calls))
        if seed < 3:
            same = absorbing.sample(exact_logits, PROCESS, (1, L), steps, seed=seed, cache=False, full=True)
            assert same.calls == steps and torch.equal(same.x, run.x)
    calls = torch.tensor(calls)
    wanted = absorbing.expected_calls(L, PROCESS, steps)
    assert wanted == pytest.approx(steps * (1 - (1 - 1 / steps) ** L))
    assert abs(float(calls.mean()) - wanted) < 4 * float(calls.std()) / 150**0.5
    assert absorbing.expected_calls(L, PROCESS, 1) == 1.0
    assert absorbing.expected_calls(1, sde.Absorbing(MASK, "cosine"), 50, batch=2) < 2


def test_any_order_with_a_prompt():
    start = torch.tensor([[0, MASK, 2, MASK, MASK, 1]]).repeat(50, 1)
    calls = []

    def model(x):
        calls.append(1)
        return exact_logits(x)

    found = absorbing.sample_any_order(model, MASK, start.shape, 1, start=start)
    assert len(calls) == 3 and bool((found != MASK).all())
    assert torch.equal(found[:, [0, 2, 5]], start[:, [0, 2, 5]])
    again = absorbing.sample_any_order(model, MASK, (10, L), 1, start=start[:10], sample_ids=20)
    assert torch.equal(again, found[20:30])


def test_gradient_of_the_bound():
    w = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    absorbing.lambda_dce(lambda x: exact_logits(x) + w, SEQUENCES[:8], MASK, seed=0).sum().backward()
    assert bool(w.grad.abs().sum() > 0)


TOKENS = SEQUENCES[:4]


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: absorbing.lambda_dce(exact_logits, TOKENS.int(), MASK), TypeError, "tokens must be int64"),
        (lambda: absorbing.lambda_dce(exact_logits, TOKENS[:0], MASK), ValueError, "B, L >= 1"),
        (lambda: absorbing.lambda_dce(exact_logits, TOKENS * 0 + MASK, MASK), ValueError, "must not hold the mask"),
        (lambda: absorbing.t_dce(lambda x: x, TOKENS, PROCESS), TypeError, "float tensor, got torch.int64"),
        (lambda: absorbing.t_dce(lambda x: exact_logits(x)[:, 1:], TOKENS, PROCESS), ValueError, r"logits \(4, 6"),
        (lambda: absorbing.t_dce(lambda x: exact_logits(x) / 0 * 0, TOKENS, PROCESS), ValueError, "NaN logits"),
        (lambda: absorbing.sample(lambda x: None, PROCESS, (2, L), 3, 0), TypeError, "got NoneType"),
        (lambda: absorbing.any_order(exact_logits, TOKENS, MASK, TOKENS), ValueError, "permutations"),
        (lambda: absorbing.any_order(exact_logits, TOKENS, MASK, TOKENS[:1]), ValueError, "orders must be int64"),
        (lambda: absorbing.sample_any_order(exact_logits, MASK, (0, L), 0), ValueError, "shape must be"),
        (lambda: absorbing.sample_any_order(exact_logits, MASK, (2, L), 0, per_call=0), ValueError, "per_call"),
        (lambda: absorbing.expected_calls(0, PROCESS, 3), ValueError, "length and batch"),
        (lambda: absorbing.expected_calls(3, PROCESS), ValueError, "give times"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
