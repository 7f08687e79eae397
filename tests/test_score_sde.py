"""Song et al.'s samplers, bits per dimension and conditions on laws with exact scores."""

import math

import pytest
import torch
from sde_problems import KS_LIMIT, ks
from systems_problems import F64, Law, cdf_of

from fokker import random, sde
from fokker.systems import score_sde

VE, VP = sde.VE(0.02, 8.0), sde.VP(t_min=1e-3)
GRID = torch.linspace(-6, 6, 4001, dtype=F64)
COVARIANCE = torch.tensor([[1.0, 0.6, 0.3], [0.6, 0.8, -0.1], [0.3, -0.1, 0.5]], dtype=F64)
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=F64)


def gaussian(process):
    """The score of N(MEAN, COVARIANCE)."""

    def score(x, t):
        a, s = float(process.alpha(t[0])), float(process.sigma(t[0]))
        return -(x - a * MEAN) @ torch.linalg.inv(a * a * COVARIANCE + s * s * torch.eye(3, dtype=F64))

    return score


def law(process):
    return Law(process, [[-1.0], [0.9]], [0.15, 0.3], [0.35, 0.65])


def distance(x, log_density):
    c = cdf_of(log_density, GRID)

    def cdf(v):
        i = torch.searchsorted(GRID, v).clamp(1, len(GRID) - 1)
        return c[i - 1] + (c[i] - c[i - 1]) * (v - GRID[i - 1]) / (GRID[1] - GRID[0])

    return ks(x, cdf)


@pytest.mark.parametrize("process", [VE, pytest.param(VP, marks=pytest.mark.slow)], ids=["ve", "vp"])
def test_both_samplers_have_the_law(process):
    """KS of 4000 samples: 2.225 is passed by chance in 1 of 10^4; the corrector's bias O(snr^2) is small at 0.05."""
    score, shape = law(process), (4000, 1)
    wanted = score.log_prob(GRID[:, None], process.t_min)
    options = {"dtype": F64, "grid": "log_snr", "rule": "std", "snr": 0.05}
    x = score_sde.predictor_corrector(score, process, shape, 150, 2, **options)
    assert distance(x[:, 0], wanted) < KS_LIMIT
    x = score_sde.probability_flow(score, process, shape, 2, rtol=1e-4, atol=1e-4, dtype=F64)
    assert distance(x[:, 0], wanted) < KS_LIMIT


def test_bits_per_dim():
    """Of the law itself, exactly; and of whole numbers, which cost their entropy and a little more."""
    score = law(VP)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    found = score_sde.bits_per_dim(score, VP, x, divergence="exact", rtol=1e-7, atol=1e-7)
    wanted = -score.log_prob(x, VP.t_min) / math.log(2) + 7
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01)
    levels, ends = 64, (-4.0, 4.0)
    edges = torch.linspace(*ends, levels + 1, dtype=F64)
    masses = torch.diff(cdf_of(score.log_prob(GRID[:, None], 0.0), GRID)[torch.searchsorted(GRID, edges)])
    entropy = float(-torch.special.xlogy(masses, masses).sum()) / math.log(2)
    numbers = torch.multinomial(masses, 200, replacement=True, generator=torch.Generator().manual_seed(0))
    x = score_sde.dequantize(numbers[:, None], levels, ends, seed=1).double()
    assert bool(((x - ends[0]) / (ends[1] - ends[0]) * levels).floor().long()[:, 0].equal(numbers))
    bits = score_sde.bits_per_dim(score, VP, x, levels=levels, ends=ends, rtol=1e-4, atol=1e-4)
    # the entropy of what was drawn, to which the mean cost of the bins' even spread adds
    drawn = float(-masses[numbers].log().mean()) / math.log(2)
    assert -0.02 < float(bits.mean()) - drawn < 0.1 and abs(drawn - entropy) < 0.5
    with pytest.raises(ValueError, match="images must hold whole numbers from 0 to 255"):
        score_sde.dequantize(torch.tensor([[256]]))


@pytest.mark.parametrize("process", [VE, pytest.param(VP, marks=pytest.mark.slow)], ids=["ve", "vp"])
def test_class_conditional_samples_are_the_classes(process):
    """By the exact classifier of the mixture's components; KS as above."""
    score = law(process)

    def classifier(x, t):
        return score.parts(x, float(t[0]))[0].log_softmax(1)

    for y, mean, variance in ((0, -1.0, 0.15), (1, 0.9, 0.3)):
        model = score_sde.ClassConditional(score, classifier, y)
        x = score_sde.predictor_corrector(model, process, (4000, 1), 150, 3, dtype=F64, grid="log_snr", corrections=0)
        only = Law(process, [[mean]], [variance], [1.0])
        assert distance(x[:, 0], only.log_prob(GRID[:, None], process.t_min)) < KS_LIMIT
    both = score_sde.ClassConditional(score, classifier, torch.arange(4) % 2)
    assert both(torch.zeros(4, 1, dtype=F64), torch.full((4,), 0.5)).shape == (4, 1)


@pytest.mark.parametrize("process", [VE, pytest.param(VP, marks=pytest.mark.slow)], ids=["ve", "vp"])
def test_inpainting_reaches_the_conditional_law(process):
    """x_2, x_3 given x_1 of a Gaussian: corrections take away the bias that the imputed score has without them."""
    known, mask = torch.tensor([1.5, 0.0, 0.0], dtype=F64), torch.tensor([True, False, False])
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    mean = MEAN[1:] + gain * (1.5 - MEAN[0])
    covariance = COVARIANCE[1:, 1:] - torch.outer(gain, COVARIANCE[0, 1:])
    errors = []
    for corrections in (0, 6):
        x = score_sde.inpaint(
            gaussian(process), process, known, mask, (4000, 3), 100, 1, dtype=F64, grid="log_snr", rule="std",
            snr=0.35, corrections=corrections,
        )  # fmt: skip
        assert bool((x[:, 0] == 1.5).all())
        errors.append(float((x[:, 1:].mean(0) - mean).abs().max()))
    # of 4000 samples a mean has a standard error of 0.0105: five of them, 6e-7 by chance, and 0.02 for the bias
    assert errors[0] > 0.15 and errors[1] < 0.0525 + 0.02, errors
    assert float((torch.cov(x[:, 1:].T) - covariance).abs().max()) < 0.06


def test_colorization():
    """Pixels with correlated channels: the grey part is kept, the colours have their conditional means given grey."""
    shape, count = (3, 2, 2), 1500
    score = gaussian(VE)

    def pixels(x, t):
        return score(x.movedim(1, -1).reshape(-1, 3), t).reshape(len(x), 2, 2, 3).movedim(-1, 1)

    grey = torch.tensor([[[0.9, -0.4], [0.1, 0.5]]], dtype=F64)
    x = score_sde.colorize(
        pixels, VE, grey, (count, *shape), 60, 1, dtype=F64, grid="log_snr", rule="std", snr=0.35, corrections=6
    )
    torch.testing.assert_close(x.mean(1), grey.expand(count, 2, 2))
    average = torch.full((3,), 1 / 3, dtype=F64)
    gain = COVARIANCE @ average / (average @ COVARIANCE @ average)
    wanted = MEAN[:, None, None] + gain[:, None, None] * (grey - average @ MEAN)
    error = (x.mean(0) - wanted).abs().max()
    assert float(error) < 5 * 0.7 / math.sqrt(count) + 0.03
    m = score_sde.grey_first(3)
    torch.testing.assert_close(m @ m.T, torch.eye(3, dtype=F64))


def test_the_known_part_has_noise_of_its_own_for_each_call():
    calls = []
    model = score_sde.Imputed(lambda x, t: calls.append(x) or x, VP, torch.ones(2), torch.tensor([True, False]), seed=5)
    x = torch.zeros(3, 2)
    for _ in range(2):
        assert bool((model(x, torch.full((3,), 0.4))[:, 0] == 0).all())
    a, s = float(VP.alpha(0.4)), float(VP.sigma(0.4))
    for i in range(2):
        z = random.normal(3, (2,), seed=5, step=i, stream=random.Stream.TRAINING_NOISE)
        torch.testing.assert_close(calls[i][:, 0], a + s * z[:, 0])
        assert bool((calls[i][:, 1] == 0).all())


def test_bad_input_is_named():
    score, x, t = law(VE), torch.zeros(4, 1), torch.zeros(4)
    known, mask, shape = torch.zeros(3), torch.zeros(3) > 0, (4, 3)
    for call, kind, text in (
        (lambda: score_sde.inpaint(score, VE, known, known, shape, 2), TypeError, "mask must have dtype bool"),
        (lambda: score_sde.inpaint(score, VE, known[:2], mask, shape, 2), ValueError, r"known \(2,\) must fit samples"),
        (lambda: score_sde.ClassConditional(score, lambda x, t: x[:, 0], 0)(x, t), ValueError,
         r"classifier must return shape \(4, classes\), got \(4,\)"),
        (lambda: score_sde.ClassConditional(score, lambda x, t: torch.zeros(4, 2), 0)(x, t), ValueError,
         "classifier must be differentiable"),
        (lambda: score_sde.predictor_corrector(lambda x, t: x[:2], VE, (4, 1), 2), ValueError, "the model must return"),
        (lambda: score_sde.predictor_corrector(lambda x, t: x.long(), VE, (4, 1), 2), TypeError,
         "the model must return a float dtype, as torch.float32, got torch.int64"),
        (lambda: score_sde.predictor_corrector(lambda x, t: x / (x > 0), VE, (40, 1), 2), ValueError,
         "of 40 samples are not finite"),
    ):  # fmt: skip
        with pytest.raises(kind, match=text):
            call()
