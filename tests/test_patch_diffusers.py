"""`fokker.patch` held against diffusers' own transformers and U-Nets, forward and backward."""

import copy
import pickle

import patch_models
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from fokker import _patch_gates, patch  # noqa: E402
from fokker._patch_verify import _run  # noqa: E402

diffusers.utils.logging.set_verbosity_error()

#: classes that must have been replaced
WANTED = {
    "DiT": {"BasicTransformerBlock", "AdaLayerNormZero", "GELU"},
    "PixArt": {"BasicTransformerBlock", "GELU"},
    "SD3": {"JointTransformerBlock", "SD35AdaLayerNormZeroX", "AdaLayerNormZero", "AdaLayerNormContinuous", "Attention",
            "RMSNorm"},
    "Flux": {"FluxTransformerBlock", "FluxSingleTransformerBlock", "FluxAttention", "AdaLayerNormZeroSingle"},
    "Sana": {"SanaTransformerBlock", "GLUMBConv", "SanaModulatedNorm", "RMSNorm"},
    "U-Net with cross-attention": {"ResnetBlock2D", "BasicTransformerBlock", "GEGLU", "SiLU"},
    "U-Net with modulated norms": {"ResnetBlock2D", "SiLU"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rms(got, want):
    """The root mean square of the difference over that of what is wanted, over all tensors together."""
    error = sum(float((got[n].double() - t).square().sum()) for n, t in want.items())
    return (error / sum(float(t.square().sum()) for t in want.values())) ** 0.5


def run(model, args, kwargs):
    results, gradients = _run(model, {model: ""}, args, kwargs, gradients=True)
    return {"out": results[""][0]}, gradients


@pytest.mark.parametrize("name", patch_models.DIFFUSERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_model(name, dtype):
    """Not further from float64 than diffusers is (a third is left for chance: sizes are small), in the same dtype."""
    model, args, kwargs = patch_models.made(patch_models.DIFFUSERS[name], dtype)
    judge, _, _ = patch_models.made(patch_models.DIFFUSERS[name], torch.float64)
    judge.load_state_dict({n: t.double() for n, t in model.state_dict().items()})
    wide = lambda v: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v  # noqa: E731
    truth = run(judge, [wide(a) for a in args], {k: wide(v) for k, v in kwargs.items()})
    plain = run(model, args, kwargs)
    report = patch.apply(model)
    assert WANTED[name] <= {report.classes[n] for n in report.replaced}, report
    fused = run(model, args, kwargs)
    assert fused[0]["out"].dtype == plain[0]["out"].dtype and set(fused[1]) == set(plain[1])
    bound = 1e-6 if dtype == torch.float32 else 1e-2
    for got, other, want in zip(fused, plain, truth, strict=True):
        assert rms(got, want) < max(1.33 * rms(other, want), 3e-8), (rms(got, want), rms(other, want))
        assert name == "Flux" or rms(got, want) < bound  # diffusers multiplies Flux's times by 1000 in bfloat16
    found = patch.verify(model, *args, show=False, **kwargs)
    if dtype == torch.float32:
        assert found.worst < 2e-6
    assert set(found.largest) | set(found.inside) == {"", *report.replaced}
    patch.remove(model)
    again, _ = run(model, args, kwargs)
    assert torch.equal(again["out"], plain[0]["out"])


def test_checkpointing_and_chunks():
    """Blocks that are computed again for the gradient, and feed-forwards in chunks (computed as diffusers does)."""
    model, args, kwargs = patch_models.made(patch_models.DIFFUSERS["DiT"])
    patch.apply(model)
    want = run(model, args, kwargs)
    model.enable_gradient_checkpointing()
    model.train()
    got = run(model, args, {**kwargs, "class_labels": kwargs["class_labels"]})
    assert set(got[1]) == set(want[1])
    model.eval()
    model.transformer_blocks[0].set_chunk_feed_forward(2, 1)
    chunked = run(model, args, kwargs)
    assert rms(chunked[0], {"out": want[0]["out"].double()}) < 1e-6


@pytest.mark.parametrize("name", list(_patch_gates._TWO))
def test_gates_of_two_projections(name):
    module, _, cls = name.rpartition(".")
    layer = getattr(pytest.importorskip(module), cls)(8, 12)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 5, 8)
    report = patch.apply(layer)
    assert report.replaced == {"": "SiLU gate of two projections"}
    found = patch.verify(layer, x, gradients=True, show=False)
    assert 0 < found.worst < 1e-6 and max(found.gradients.values()) < 1e-5
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    found = patch.verify(layer.bfloat16(), x.bfloat16(), gradients=True, show=False)
    assert 0 < found.worst < 1e-2 and max(found.gradients.values()) < 2e-2


def last_norms():
    from diffusers.models.autoencoders import vae

    small = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False}
    for cls, channels in ((vae.Encoder, 3), (vae.Decoder, 4)):
        yield cls(channels, 4, **small).eval(), (torch.randn(2, channels, 8, 8),)
    yield patch_models.made(patch_models.DIFFUSERS["U-Net with modulated norms"])[:2]


def test_last_norms():
    """The last norm of U-Nets and autoencoders lets its input through, the SiLU after it does both; or neither does."""
    for model, args in last_norms():
        norm, act, state = model.conv_norm_out, model.conv_act, list(model.state_dict())
        x = torch.randn(2, 8, 4, 4)

        def run(model=model, args=args):
            out = model(*args)
            return out if isinstance(out, torch.Tensor) else out.sample

        def as_torch_does(norm=norm, act=act, x=x):
            first, second = torch.equal(norm(x), type(norm).forward(norm, x)), torch.nn.functional.silu(x)
            return first and torch.equal(act(x), second)

        want = run()
        report = patch.apply(model)
        assert report.replaced["conv_act"] == "group norm and SiLU"
        assert report.kept["conv_norm_out"] == "in a fused module"
        assert list(model.state_dict()) == state and patch.apply(model).replaced == report.replaced
        assert norm(x) is x and torch.allclose(act(x), torch.nn.functional.silu(type(norm).forward(norm, x)), atol=1e-5)
        found = patch.verify(model, *args, gradients=True, show=False)
        assert "conv_act" in found.largest and found.worst < 1e-5 and max(found.gradients.values()) < 1e-5
        assert norm(x) is x  # as it was before
        twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        assert twin.conv_act.forward.args == (twin.conv_act, twin) and torch.equal(run(twin), run())
        handle = norm.register_forward_hook(lambda m, args, out: None)  # who would see what it does not compute
        assert torch.allclose(run(), want, atol=1e-4) and as_torch_does()
        handle.remove()
        with torch.autocast("cpu", torch.bfloat16):
            assert as_torch_does()
        model.conv_act = torch.nn.Identity()
        assert as_torch_does()
        model.conv_act = act
        compiled = torch.compile(torch.nn.Sequential(norm, act), fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), act(norm(x)))
        patch.remove(model)
        assert torch.equal(run(), want) and as_torch_does() and "forward" not in norm.__dict__ | act.__dict__
        model.other = act  # called elsewhere too
        assert "conv_act" not in patch.apply(model).replaced and as_torch_does()
        patch.remove(model)


def test_parts():
    """Layers of diffusers that the models above do not hold."""
    from diffusers.models import activations, normalization

    x, emb = torch.randn(2, 5, 16), torch.randn(2, 16)
    image = torch.randn(2, 16, 4, 4)
    cases = [
        (normalization.AdaLayerNorm(16, 10), (x, torch.tensor(3)), {}),
        (normalization.AdaLayerNorm(16, output_dim=32, chunk_dim=1), (x,), {"temb": emb}),
        (normalization.LuminaRMSNormZero(16, 1e-5, True), (x, emb), {}),
        (normalization.AdaLayerNormContinuous(16, 16, norm_type="rms_norm"), (x, emb), {}),
        (normalization.AdaLayerNormZero(16, norm_type="fp32_layer_norm"), (x,), {"emb": emb}),
        (normalization.AdaGroupNorm(16, 16, 4, "silu"), (image, emb), {}),
        (normalization.FP32LayerNorm(16), (x,), {}),
        (normalization.FP32LayerNorm(16), (x.bfloat16(),), {}),
        (activations.GEGLU(16, 8), (x,), {}),
        (activations.SwiGLU(16, 8), (x,), {}),
        (activations.GELU(16, 8, approximate="tanh", bias=False), (x,), {}),
    ]
    for layer, args, kwargs in cases:
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.3)
        report = patch.apply(layer)
        assert "" in report.replaced, (layer, report)
        found = patch.verify(layer, *args, gradients=True, show=False, **kwargs)
        half = args[0].dtype == torch.bfloat16
        assert found.worst < (8e-3 if half else 1e-6) and max(found.gradients.values()) < (8e-3 if half else 1e-5), (
            layer,
            found,
        )
    grouped = normalization.AdaGroupNorm(16, 16, 4, "silu")
    with torch.autocast("cpu", torch.bfloat16):  # shifts and scales in bfloat16 beside float32 images; 1 + scale is not
        assert patch.verify(grouped, image, emb, show=False).worst < 8e-3
    biased = normalization.RMSNorm(16, 1e-5, bias=True)
    assert patch.apply(biased).kept == {"": "an RMS norm with a bias"}
    assert patch.apply(activations.GELU(16, 8)).kept == {"": "an exact GELU is one pass in torch already"}
