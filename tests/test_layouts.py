"""Tensors that no kernel can read (sparse, opaque, nested) are a TypeError that names the argument, everywhere."""

import pytest
import torch

import fokker
from fokker import bessel, vmf
from fokker.distributions import HypersphericalUniform, VonMisesFisher

K, X = torch.ones(3), torch.eye(3)
SPARSE_K, SPARSE_X = K.to_sparse(), X.to_sparse()
IDS = torch.arange(3).to_sparse()
CALLS = {
    "log_iv v": (lambda: bessel.log_iv(SPARSE_K, K), "log_iv: v must be"),
    "log_iv x": (lambda: bessel.log_iv(0.5, SPARSE_K), "log_iv: x must be"),
    "log_kv gradient": (lambda: bessel.log_kv(K, SPARSE_K.clone().requires_grad_()), "log_kv: x must be"),
    "iv_ratio out": (lambda: bessel.iv_ratio(K, K, out=SPARSE_K), "iv_ratio: out must be"),
    "entropy": (lambda: vmf.entropy(3, SPARSE_K), "vmf_entropy: concentration must be"),
    "inverse": (lambda: vmf.concentration_from_resultant(3, SPARSE_K), "resultant must be"),
    "log_prob x": (lambda: vmf.log_prob(SPARSE_X, X[0], 1.0), "log_prob: x must be"),
    "log_prob mean": (lambda: vmf.log_prob(X, SPARSE_X, 1.0), "log_prob: mean_direction must be"),
    "log_prob concentration": (lambda: vmf.log_prob(X, X, SPARSE_K), "log_prob: concentration must be"),
    "kl": (lambda: vmf.kl_divergence(X, 1.0, X, SPARSE_K), "kl_divergence: concentration_q must be"),
    "fit x": (lambda: vmf.fit(SPARSE_X), "fit: x must be"),
    "fit weights": (lambda: vmf.fit(X, SPARSE_K), "fit: weights must be"),
    "sample mean": (lambda: vmf.sample(SPARSE_X, 1.0), "rsample: mean_direction must be"),
    "sample concentration": (lambda: vmf.rsample(X, SPARSE_K), "rsample: concentration must be"),
    "sample ids": (lambda: vmf.sample(X, 1.0, sample_ids=IDS), "rsample: sample_ids must be"),
    "mixture x": (lambda: vmf.mixture_log_prob(SPARSE_X, X, K, K), "mixture_log_prob: x must be"),
    "mixture weights": (lambda: vmf.mixture_log_prob(X, X, K, SPARSE_K), "mixture_log_prob: log_weights must be"),
    "distribution mean": (lambda: VonMisesFisher(SPARSE_X, 1.0), "VonMisesFisher: mean_direction must be"),
    "distribution concentration": (lambda: VonMisesFisher(X, SPARSE_K), "VonMisesFisher: concentration must be"),
    "distribution value": (lambda: VonMisesFisher(X, 1.0).log_prob(SPARSE_X), "log_prob: value must be"),
    "uniform value": (lambda: HypersphericalUniform(3).log_prob(SPARSE_X), "log_prob: value must be"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_sparse(name, backend):
    call, message = CALLS[name]
    with fokker.use_backend(backend), pytest.raises(TypeError, match=message + ".*dense.*sparse_coo"):
        call()


@pytest.mark.filterwarnings("ignore:.*[Nn]ested:UserWarning", "ignore:.*CSR:UserWarning")
def test_other_layouts():
    for layout, tensor in (
        ("sparse_csr", X.to_sparse_csr()),
        ("_mkldnn", X.to_mkldnn()),
        ("nested", torch.nested.nested_tensor([K, K[:2]])),
        ("nested", torch.nested.nested_tensor([K, K[:2]], layout=torch.jagged)),
    ):
        for call in (
            lambda t: bessel.log_iv(1.0, t),
            lambda t: vmf.entropy(3, t),
            lambda t: vmf.log_prob(t, X[0], 1.0),
        ):
            with pytest.raises(TypeError, match=f"must be a dense.*{layout}"):
                call(tensor)
