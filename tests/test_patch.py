"""`fokker.patch` on torch's, timm's and the twins' modules: what it changes, what it leaves, and that it comes out."""

import copy
import pickle

import denoiser_twins as twins
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fokker.nn
from fokker import patch


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def filled(model):
    for p in model.parameters():
        p.data = torch.randn(p.shape) * (0.5 / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.3)
    return model.eval()


class Small(nn.Module):
    """One of each of torch's norms, and pairs."""

    def __init__(self):
        super().__init__()
        self.layer, self.rms = nn.LayerNorm(12), nn.RMSNorm(12, elementwise_affine=False)
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 1))
        self.group, self.outer = nn.GroupNorm(2, 4), nn.RMSNorm((2, 6))
        self.pair = nn.Sequential(nn.GroupNorm(1, 4), nn.SiLU(), nn.GroupNorm(2, 4), nn.SiLU())

    def forward(self, x):
        y = self.pair(self.group(self.convs(x))).flatten(2)
        y = y[..., : y.shape[-1] // 12 * 12].unflatten(-1, (-1, 12))
        return self.outer((self.layer(y) + self.rms(y)).unflatten(-1, (2, 6)))


def blocks():
    """Models of plain forms, and their inputs."""
    dim = 16
    dit = twins.DiT(4, 2, 3, dim, 2, 2, 5)
    yield dit, (torch.randn(2, 3, 4, 4), torch.rand(2), torch.tensor([0, 4])), 3
    fit = twins.DiTBlock(dim, 2)
    yield fit, (torch.randn(2, 5, dim), torch.randn(2, dim)), 1
    for kind in ("adm", "ddpm++"):
        unet = twins.UNet(8, kind, 16, (1, 2), 1, (4,), 4, 9)
        labels = torch.eye(4)[[1, 3]]
        count = sum(isinstance(m, twins.UNetBlock) for m in unet.modules())
        yield unet, (torch.randn(2, 3, 8, 8), torch.randn(2), labels, torch.randn(2, 9)), count


def test_norms_and_pairs():
    model = filled(Small())
    report = patch.apply(model)
    assert set(report.replaced) == {"rms", "convs", "pair"} and report
    assert report.kept.pop("outer") == "normalises over 2 dimensions"
    alone, inside = "alone one pass in torch already", "in a fused module"
    assert report.kept == {"layer": alone, "group": alone, "convs.1": inside, "pair.0": inside, "pair.2": inside}
    assert "fokker.patch: 3 of 15 modules replaced" in str(report)
    assert "kept 3 GroupNorm: in a fused module (convs.1 and 2 more)" in str(report)
    x = torch.randn(2, 3, 9, 9)
    assert patch.verify(model, x, show=False).worst < 1e-4  # norms of norms: in float64
    found = patch.verify(model.double(), x.double(), gradients=True, show=False)
    assert found.worst < 1e-13 and max(found.gradients.values()) < 1e-12
    assert found.inside == [] and set(found.largest) == {"", "rms", "convs", "pair"}


def test_state_types_and_parameters_stay_and_it_comes_out():
    model = filled(Small())
    x = torch.randn(2, 3, 9, 9)
    want, state, types = model(x), model.state_dict(), [type(m) for m in model.modules()]
    parameters = dict(model.named_parameters())
    patch.apply(model)
    assert patch.apply(model).replaced  # again: the same
    assert list(model.state_dict()) == list(state) and [type(m) for m in model.modules()] == types
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert not torch.equal(model(x), want)  # another order of sums
    twin = copy.deepcopy(model)
    twin.layer.weight.data.zero_()
    assert model.layer.weight.any() and twin.rms.forward.args == (twin.rms,)
    sent = pickle.loads(pickle.dumps(model))
    assert torch.equal(sent(x), model(x)) and sent.rms.forward.args == (sent.rms,)
    assert patch.remove(sent) == patch.remove(twin) == patch.remove(model) == 3 and patch.remove(model) == 0
    assert torch.equal(model(x), want) and not any("forward" in m.__dict__ for m in model.modules())


def test_applied_is_undone_by_an_error_too():
    model = filled(Small())
    with pytest.raises(KeyError), patch.applied(model) as report:
        assert len(report.replaced) == 3 and "forward" in model.rms.__dict__
        raise KeyError
    assert not any("forward" in m.__dict__ for m in model.modules())
    patch.apply(model)
    with patch.applied(model):
        pass
    assert "forward" in model.rms.__dict__  # it was before
    patch.remove(model)
    patch.apply(model.convs)
    patch.verify(model, torch.randn(2, 3, 9, 9), show=False)
    assert "forward" in model.convs.__dict__ and "forward" not in model.rms.__dict__


def test_unknown_model_is_left_alone(capsys):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    report = patch.apply(model)
    assert not report and not any("forward" in m.__dict__ for m in model.modules())
    assert "nothing replaced, none of 3 modules is known: the model is unchanged" in str(report)
    assert report.kept == {"1": "no rule for torch.nn.modules.batchnorm.BatchNorm1d"}
    found = patch.verify(model.eval(), torch.randn(2, 3))
    assert found.worst == 0 and "0 modules replaced" in capsys.readouterr().out
    assert patch.apply(fokker.nn.ResnetBlock2D(8, 8, 4)).kept == {
        "norm0": "fokker's own",
        "norm1": "fokker's own",
        "": "fokker's own",
    }
    for call in (patch.apply, patch.remove, patch.verify):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
            call("model")


def test_forward_of_somebody_else_is_left_alone():
    model = filled(Small())
    model.rms.forward = lambda x: x
    report = patch.apply(model)
    assert report.kept["rms"] == "its forward was replaced by somebody else" and "rms" not in report.replaced
    patch.remove(model)
    assert "forward" in model.rms.__dict__


@pytest.mark.parametrize("which", range(4))
def test_plain_forms(which):
    model, arguments, count = list(blocks())[which]
    model = filled(model)
    state = torch.get_rng_state()
    report = patch.apply(model)
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())
    own = [n for n in report.replaced if report.classes[n] in ("DiTBlock", "FinalLayer", "UNetBlock")]
    assert len(own) == count, report
    found = patch.verify(model, *arguments, gradients=True, show=False)
    assert found.worst < 1e-5 and max(found.gradients.values()) < 1e-5
    double = [a.double() if a.is_floating_point() else a for a in arguments]
    found = patch.verify(model.double(), *double, gradients=True, show=False)
    assert found.worst < 1e-12 and max(found.gradients.values()) < 1e-12


def test_block_with_the_arguments_of_fit():
    """whlzy/FiT's: a mask, rotary tables and the modulation of all blocks."""

    class Attention(twins.Attention):
        def __init__(self, dim, heads):
            super().__init__(dim, heads, norm=True)
            self.num_heads = heads

        def forward(self, x, mask, freqs_cos, freqs_sin):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            turn = lambda z: torch.stack((-z[..., 1::2], z[..., ::2]), -1).flatten(-2)  # noqa: E731
            q, k = (z * freqs_cos + turn(z) * freqs_sin for z in (self.q_norm(q), self.k_norm(k)))
            seen = mask[:, None, :, None] == mask[:, None, None, :]
            out = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
            return self.proj(out * (mask != 0)[..., None])

    class Block(twins.FiTBlock):
        def __init__(self, dim, heads):
            super().__init__(dim, heads, rank=4)
            self.attn = Attention(dim, heads)

        def forward(self, x, c, mask, freqs_cos, freqs_sin, global_adaln=0.0):
            s1, a1, g1, s2, a2, g2 = (self.adaLN_modulation(c) + global_adaln).chunk(6, dim=1)
            h = self.attn(twins.modulate(self.norm1(x), s1, a1), mask, freqs_cos, freqs_sin)
            x = x + g1[:, None] * h
            return x + g2[:, None] * self.mlp(twins.modulate(self.norm2(x), s2, a2))

    block = filled(Block(16, 2))
    mask, tables = torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0]]), (torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8))
    args = (torch.randn(2, 5, 16), torch.randn(2, 16), mask, *tables)
    assert "" in patch.apply(block).replaced
    for more in ((), (torch.randn(2, 96),)):
        found = patch.verify(block, *args, *more, gradients=True, show=False)
        assert found.worst < 1e-6 and max(found.gradients.values()) < 1e-5
    named = dict(zip(("mask", "freqs_cos", "freqs_sin"), args[2:], strict=True))
    assert torch.allclose(block(*args[:2], **named), block(*args), atol=1e-5)


def test_impostors_are_found_out():
    """Blocks with the parts of a DiT block that compute something else."""

    class Swapped(twins.DiTBlock):
        def forward(self, x, c):
            a1, s1, g1, s2, a2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)
            x = x + g1[:, None] * self.attn(twins.modulate(self.norm1(x), s1, a1))
            return x + g2[:, None] * self.mlp(twins.modulate(self.norm2(x), s2, a2))

    class Named(twins.DiTBlock):
        def forward(self, x, c, more):
            return super().forward(x, c) + more

    class Raises(twins.DiTBlock):
        def forward(self, x, c):
            raise RuntimeError("not yet")

    for cls, why in ((Swapped, "computes something else"), (Named, "not its sizes or arguments"), (Raises, "not yet")):
        block = cls(16, 2)
        torch.nn.init.zeros_(block.adaLN_modulation[1].weight)  # as at the start of training: any order would do
        torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
        report = patch.apply(block)
        assert "" not in report.replaced and why in report.kept[""], report
        assert not report.replaced


def test_hooks_are_called():
    """On a layer that a fused block would not call: the block then calls it."""
    block, (x, c), _ = list(blocks())[1]
    block = filled(block)
    want = block(x, c)
    patch.apply(block)
    seen = []
    handle = block.norm2.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    got = block(x, c)
    assert seen == [x.shape] and torch.allclose(got, want, atol=1e-5)
    handle.remove()
    block(x, c)
    assert len(seen) == 1
    block.mlp.register_forward_hook(lambda m, i, o: torch.zeros_like(o))
    zero = block(x, c)
    patch.remove(block)
    assert torch.allclose(zero, block(x, c), atol=1e-5)


def test_dropout_draws_the_same_numbers():
    block, (x, c), _ = list(blocks())[1]
    block = filled(block).train()
    block.attn.proj = nn.Sequential(block.attn.proj, nn.Dropout(0.5))
    report = patch.apply(block)
    assert "" in report.replaced
    assert patch.verify(block, x, c, show=False).worst < 1e-5


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
def test_dtypes_are_those_of_torch(stream):
    """Under autocast, and with parameters of another dtype than the stream's."""
    block, (x, c), _ = list(blocks())[1]
    block, (x, c) = filled(block), (x.to(stream), c.to(stream))
    with torch.autocast("cpu", torch.bfloat16):
        want = block(x, c)
        with patch.applied(block):
            got = block(x, c)
    assert got.dtype == want.dtype
    assert torch.allclose(got.float(), want.float(), atol=0.05 * float(want.detach().abs().max()))
    y = torch.randn(3, 8, dtype=torch.bfloat16)
    rms = nn.RMSNorm(8, eps=1e-6)
    patch.apply(rms)
    assert rms(y).dtype == F.rms_norm(y, (8,), rms.weight, 1e-6).dtype
    assert torch.equal(rms.bfloat16()(y), F.rms_norm(y.float(), (8,), rms.weight.float(), 1e-6).bfloat16())
    assert patch.verify(nn.RMSNorm(8), torch.randn(8), show=False).worst == 0  # one dimension: torch's
    assert patch.verify(nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU()), torch.randn(0, 8, 3), show=False).worst == 0


def test_timm():
    pytest.importorskip("timm")
    import patch_models
    from timm.layers import Attention, GroupNormAct, LayerNormFp32, RmsNorm, RmsNormFp32, SwiGLUPacked
    from timm.layers.norm_act import GroupNorm1Act

    model, args, _ = patch_models.made(patch_models.vision_transformer)
    report = patch.apply(model)
    assert [report.classes[n] for n in report.replaced].count("Block") == 2
    found = patch.verify(model, *args, gradients=True, show=False)
    assert found.worst < 1e-6 and max(found.gradients.values()) < 1e-5
    assert found.inside == []
    torch.manual_seed(1)
    patch.remove(model.train())
    want = model(*args)
    patch.apply(model)
    torch.manual_seed(1)
    assert torch.isfinite(want).all() and torch.isfinite(model(*args)).all()
    gate, norm = SwiGLUPacked(8, 16), GroupNormAct(8, 2, act_layer=nn.SiLU, inplace=False)
    relu = GroupNormAct(8, 2)
    tokens, half = torch.randn(2, 3, 8), torch.randn(2, 3, 8).bfloat16()
    attention = [
        Attention(8, 2, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm, gated=True, scale_norm=True),
        Attention(8, 2, qk_norm=True, norm_layer=RmsNorm),
    ]
    image = torch.randn(2, 8, 3, 3)
    cases = [(gate, tokens), (norm, image), (GroupNorm1Act(8, act_layer=nn.SiLU, inplace=False), image)]
    cases += [(layer, tokens) for layer in (RmsNorm(8), RmsNormFp32(8), nn.GELU("tanh"), *attention)]
    for layer, x in cases:
        assert patch.apply(filled(layer)).replaced
        assert patch.verify(layer, x, gradients=any(True for _ in layer.parameters()), show=False).worst < 1e-6
    assert patch.apply(relu).kept == {"": "its activation is ReLU, not SiLU"}
    assert patch.apply(Attention(9, 3, qk_norm=True, norm_layer=nn.LayerNorm)).kept[""].startswith("its heads have 3")
    assert patch.apply(Attention(8, 2)).kept == {}
    fast = RmsNorm(8)
    fast._fast_norm = True
    assert "fast norm" in patch.apply(fast).kept[""]
    wide = LayerNormFp32(8)
    patch.apply(wide)
    assert torch.equal(wide(half), F.layer_norm(half.float(), (8,)).bfloat16()) and wide(tokens).dtype == tokens.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_timm_gates_of_two_projections(dtype):
    """With and without biases, with a norm, with a hook on a projection; in half precision nearer than timm's."""
    mlp = pytest.importorskip("timm.layers.mlp")
    x = torch.randn(60, 5, 8).to(dtype)
    for made in (mlp.SwiGLU(8, 12), mlp.SwiGLU(8, 12, bias=False), mlp.SwiGLU(8, 12, norm_layer=nn.LayerNorm)):
        layer = filled(made).to(dtype)
        judge, plain = copy.deepcopy(layer).double(), layer(x)
        state = list(layer.state_dict())
        report = patch.apply(layer)
        assert report.replaced[""] == "biases and SiLU gate of two projections" and list(layer.state_dict()) == state
        found = patch.verify(layer, x, gradients=True, show=False)
        bound = 1e-6 if dtype is torch.float32 else 1e-2
        assert found.worst < bound and max(found.gradients.values()) < 4 * bound
        error, other = ((y.double() - judge(x.double())).square().mean() for y in (layer(x), plain))
        assert error < (other if dtype is torch.bfloat16 else 1e-12)
        handle = layer.fc1_x.register_forward_hook(lambda m, args, out: 2 * out)
        doubled = layer(x)
        assert patch.remove(layer) == 1 and torch.allclose(doubled.float(), layer(x).float(), rtol=bound, atol=bound)
        handle.remove()
        assert torch.equal(layer(x), plain)
    assert patch.apply(mlp.SwiGLU(8, 12, act_layer=nn.GELU)).kept[""] == "its activation is GELU, not SiLU"
    assert patch.apply(mlp.SwiGLU(8, 12, act_layer=nn.SiLU)).replaced


def test_classes_that_torch_makes_for_one_module():
    """A parametrised or sharded module is of a class of its own; a distributed tensor is left to torch."""
    block, (x, c), _ = list(blocks())[1]
    norm = nn.utils.parametrizations.weight_norm(nn.RMSNorm(8, 1e-6), dim=None)
    assert type(norm) is not nn.RMSNorm and patch.apply(norm).replaced
    assert patch.verify(norm, torch.randn(2, 3, 8), gradients=True, show=False).worst < 1e-6
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch without distributed")
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        want, late, pair = (
            filled(block)(x, c),
            filled(list(blocks())[1][0]),
            nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU()),
        )
        assert "" in patch.apply(block).replaced
        for module in (block, late, pair):
            fully_shard(module, mesh=mesh)
        assert patch.apply(late).kept[""] == "it is sharded already: put the patch in before"
        image = torch.randn(2, 8, 3)
        assert patch.apply(pair).replaced and torch.allclose(pair(image), F.silu(F.group_norm(image, 2)), atol=1e-5)
        got = block(x, c)
        got.sum().backward()
        assert torch.allclose(got, want, atol=1e-5) and isinstance(block.adaLN_modulation[1].weight.grad, DTensor)
        spread, bare = distribute_tensor(x, mesh, [Replicate()]), nn.RMSNorm(16, 1e-6, elementwise_affine=False)
        assert patch.apply(bare).replaced
        assert torch.equal(bare(spread).full_tensor(), F.rms_norm(x, (16,), eps=1e-6))
    finally:
        distributed.destroy_process_group()


def test_compiled_models_are_known():
    """Put in and taken out after compiling, too: Dynamo guards the forwards. Verified without the compiler."""
    block, (x, c), _ = list(blocks())[1]
    compiled = torch.compile(filled(block), backend="eager")
    want = compiled(x, c)
    assert set(patch.apply(compiled).replaced) == {"_orig_mod"}
    fused = block(x, c)
    assert torch.equal(compiled(x, c), fused) and not torch.equal(fused, want)
    assert 0 < patch.verify(compiled, x, c, show=False).worst < 1e-6
    assert patch.remove(compiled) == 1
    assert torch.equal(compiled(x, c), want)


def test_a_fallback_is_compiled_whole():
    """Of a class that is allowed in graphs, as diffusers' blocks are: half-precision streams under autocast."""

    @torch._dynamo.allow_in_graph
    class Block(twins.DiTBlock):
        pass

    block, x, c = filled(Block(16, 2)), torch.randn(2, 5, 16).bfloat16(), torch.randn(2, 16).bfloat16()
    assert "" in patch.apply(block).replaced
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        want = block(x, c)
        assert torch.equal(compiled(x, c), want)
    patch.remove(block)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(x, c), want)
    assert not any(name in vars(block) for name in ("forward", "_fokker_plain"))


@pytest.mark.slow
def test_patched_block_compiles_whole():
    block, (x, c), _ = list(blocks())[1]
    want = filled(block)(x, c)
    patch.apply(block)
    got = torch.compile(block, fullgraph=True, backend="aot_eager")(x, c)
    assert torch.allclose(got, want, atol=1e-5)
