"""fokker.systems.palm: known answers of the assignment, the moving average, both losses and the scores."""

import math

import pytest
import torch

from fokker import vmf
from fokker.systems import palm

F64 = torch.float64


def unit(*shape, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=g, dtype=F64), dim=-1).to(dtype)


@pytest.fixture
def batch():
    return unit(12, 5, seed=1), unit(3, 4, 5, seed=2), torch.arange(12) % 3


def test_sinkhorn_marginals():
    q = palm.sinkhorn(unit(30, 6) @ unit(5, 6, seed=3).t(), epsilon=0.2, iterations=500)
    torch.testing.assert_close(q.sum(1), torch.ones(30, dtype=F64), rtol=1e-12, atol=0)
    torch.testing.assert_close(q.sum(0), torch.full((5,), 6.0, dtype=F64), rtol=1e-8, atol=0)


def test_sinkhorn_scales_the_kernel():
    # diag(u) exp(s / eps) diag(v): second differences of the logarithm are those of s / eps
    s = unit(7, 3)
    logs = palm.sinkhorn(s, epsilon=0.5, iterations=4).log()

    def mixed(t):
        return t[1:, 1:] - t[:-1, 1:] - t[1:, :-1] + t[:-1, :-1]

    torch.testing.assert_close(mixed(logs), mixed(s / 0.5), rtol=1e-10, atol=1e-12)


def test_sinkhorn_groups_are_separate(batch):
    s, labels = unit(12, 4, seed=5), batch[2]
    q = palm.sinkhorn(s, 0.1, 3, labels)
    for c in range(3):
        torch.testing.assert_close(q[labels == c], palm.sinkhorn(s[labels == c], 0.1, 3))


def test_sinkhorn_of_a_tiny_epsilon_stays_finite():
    q = palm.sinkhorn(unit(9, 4, dtype=torch.float32), epsilon=1e-4, iterations=50)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(9))


def test_prune():
    q = palm.prune(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), 2)
    torch.testing.assert_close(q[0], torch.tensor([0.625, 0.375, 0.0]))
    assert (q > 0).sum(1).tolist() == [2, 2] and q[1, 2] == pytest.approx(8 / 9)


def test_assign_rows_sum_to_one(batch):
    z, prototypes, labels = batch
    for keep in (None, 2):
        w = palm.assign(z, prototypes, labels, keep=keep)
        assert w.shape == (12, 4) and not w.requires_grad
        torch.testing.assert_close(w.sum(1), torch.ones(12, dtype=F64))
    assert ((w > 0).sum(1) == 2).all()


def test_move_by_hand(batch):
    z, prototypes, labels = batch
    w = palm.assign(z, prototypes, labels)
    moved = palm.move(prototypes, z, labels, w, momentum=0.9)
    rows = labels == 1
    mean = (w[rows, 2, None] * z[rows]).sum(0) / w[rows, 2].sum()
    expected = 0.9 * prototypes[1, 2] + 0.1 * mean
    torch.testing.assert_close(moved[1, 2], expected / expected.norm())
    alone = palm.move(prototypes, z[:1], labels[:1], w[:1], momentum=0.0)
    assert torch.equal(alone[1:], prototypes[1:])  # no row of these classes: they stay
    torch.testing.assert_close(alone[0], z[0].expand(4, 5))


def test_mle_loss_by_hand(batch):
    z, prototypes, labels = batch
    w = palm.prune(palm.assign(z, prototypes, labels), 2)
    kappa = torch.rand(3, 4, dtype=F64) * 20
    expected = 0.0
    for i in range(12):
        own = [w[i, k] * vmf.log_prob(z[i], prototypes[labels[i], k], kappa[labels[i], k]).exp() for k in range(4)]
        other = [(c, k) for c in range(3) if c != labels[i] for k in range(4)]
        rest = [vmf.log_prob(z[i], prototypes[c, k], kappa[c, k]).exp() / 4 for c, k in other]
        expected -= math.log(sum(own) / (sum(own) + sum(rest))) / 12
    assert float(palm.mle_loss(z, prototypes, labels, w, kappa)) == pytest.approx(float(expected), rel=1e-12)


def test_mle_loss_of_indistinct_classes_is_log_c(batch):
    z, _, labels = batch
    same = unit(5).expand(3, 4, 5)
    w = torch.full((12, 4), 0.25, dtype=F64)
    assert float(palm.mle_loss(z, same, labels, w, 7.0)) == pytest.approx(math.log(3), rel=1e-12)


def test_contrastive_loss_by_hand():
    p = unit(2, 3, 4)
    flat, expected = p.flatten(0, 1), 0.0
    for a in range(6):
        e = [math.exp(float(flat[a] @ flat[b]) / 0.5) for b in range(6)]
        own = sum(e[b] for b in range(6) if b != a and b // 3 == a // 3)
        expected -= math.log(own / (sum(e) - e[a])) / 6
    assert float(palm.contrastive_loss(p, 0.5)) == pytest.approx(expected, rel=1e-12)


def test_gradients(batch):
    z, prototypes, labels = (t.clone() for t in batch)
    w = palm.prune(palm.assign(z, prototypes, labels), 3)
    kappa = torch.rand(3, 4, dtype=F64) + 5
    for t in (z, prototypes, kappa):
        t.requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: palm.mle_loss(a[0], a[1], labels, w, a[2]), (z, prototypes, kappa))
    assert torch.autograd.gradcheck(palm.contrastive_loss, (prototypes,))
    assert torch.autograd.gradcheck(lambda a, b: palm.move(a, b, labels, w, 0.5), (prototypes, z))
    assert torch.autograd.gradcheck(lambda s: palm.sinkhorn(s, 0.3, 3, labels), (unit(12, 4, seed=7).requires_grad_(),))
    assert torch.autograd.gradcheck(lambda a, b, c: palm.score(a, b, c, mixture=True), (z, prototypes, kappa))


def test_training_separates_two_clusters():
    g = torch.Generator().manual_seed(3)
    labels = torch.arange(120) % 2
    hidden = torch.zeros(120, 10)
    hidden[:, 0] = labels.float() * 2 - 1
    x = hidden + 1.5 * torch.randn(120, 10, generator=g)
    encoder = torch.nn.Linear(10, 8)
    prototypes = unit(2, 3, 8, seed=4, dtype=torch.float32)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=0.05)

    def right():
        z = torch.nn.functional.normalize(encoder(x), dim=1)
        nearest = (z @ prototypes.flatten(0, 1).t()).argmax(1) // 3
        return float((nearest == labels).float().mean())

    before, losses = right(), []
    for _ in range(60):
        z = torch.nn.functional.normalize(encoder(x), dim=1)
        loss, prototypes = palm.step(z, labels, prototypes, momentum=0.8, keep=2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    # Bayes' rule is right on 75 % of these points; 60 steps of 10 x 8 parameters reach at least that on the sample.
    assert before < 0.7 and right() > 0.75, (before, right())
    assert losses[-1] < 0.75 * losses[0]
    torch.testing.assert_close(prototypes.norm(dim=-1), torch.ones(2, 3))


def test_scores():
    prototypes = unit(2, 2, 16, seed=8)
    kappa = torch.tensor([[50.0, 80.0], [60.0, 200.0]], dtype=F64)
    pairs = list(zip(prototypes.flatten(0, 1), kappa.flatten(), strict=True))
    inside = torch.cat([vmf.sample(p, k, (40,), seed=i) for i, (p, k) in enumerate(pairs)])
    outside = unit(160, 16, seed=9)
    every = torch.stack([vmf.log_prob(inside, p, k) for p, k in pairs])
    torch.testing.assert_close(palm.score(inside, prototypes, kappa), every.amax(0))
    torch.testing.assert_close(palm.score(inside, prototypes, kappa, mixture=True), every.logsumexp(0) - math.log(4))
    for mixture in (False, True):
        a, b = (palm.score(z, prototypes, kappa, mixture=mixture) for z in (inside, outside))
        assert float((a[:, None] > b).double().mean()) > 0.99  # the AUROC


def test_concentrations_are_found_again():
    prototypes = unit(2, 1, 16, seed=10)
    kappa = torch.tensor([[30.0], [300.0]], dtype=F64)
    z = torch.cat([vmf.sample(prototypes[c, 0], kappa[c, 0], (4000,), seed=c) for c in range(2)])
    labels = torch.arange(2).repeat_interleave(4000)
    found = palm.concentrations(z, prototypes, labels, torch.ones(8000, 1, dtype=F64))
    # the estimate's relative deviation is about sqrt(2 / (n (d - 1))) = 0.006
    torch.testing.assert_close(found, kappa, rtol=0.03, atol=0)


def test_errors(batch):
    z, prototypes, labels = batch
    w = torch.full((12, 4), 0.25, dtype=F64)
    with pytest.raises(ValueError, match=r"z \(12, 4\) and prototypes"):
        palm.score(z[:, :4], prototypes)
    with pytest.raises(ValueError, match="labels must be int64"):
        palm.assign(z, prototypes, labels.float())
    with pytest.raises(ValueError, match="assignment must be"):
        palm.mle_loss(z, prototypes, labels, w[:, :2])
    with pytest.raises(ValueError, match="K >= 2"):
        palm.contrastive_loss(prototypes[:, :1])
    with pytest.raises(ValueError, match="epsilon > 0"):
        palm.sinkhorn(w, 0.0)
    with pytest.raises(ValueError, match="momentum"):
        palm.move(prototypes, z, labels, w, 1.5)
    with pytest.raises(ValueError, match="keep must be"):
        palm.prune(w, 9)
