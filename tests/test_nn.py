"""`fokker.nn` against plain twins: the same state dict, the same outputs and gradients."""

import copy

import denoiser_twins as twins
import pytest
import torch

from fokker import nn


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are small: two threads take longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


DIM, HEADS, CLASSES = 32, 4, 5
UNETS = {
    "adm": {"width": 16, "mults": (1, 2), "blocks": 1, "attended": (4,)},
    "ddpm++": {"width": 16, "mults": (2, 1), "blocks": 1, "attended": (8,)},
    "ncsn++": {"width": 16, "mults": (1, 2), "blocks": 1, "attended": (4,)},
}


def images(dtype, size=8, channels=3):
    return torch.randn(2, channels, size, size, dtype=dtype)


def tokens(dtype, mask=False):
    """Rows of patches, column and row of each, and with ``mask`` two rows of padding."""
    x = torch.randn(2, 6, 12, dtype=dtype)
    grid = torch.stack([torch.arange(6) % 3, torch.arange(6) // 3]).expand(2, 2, 6).contiguous()
    seen = torch.ones(2, 6)
    seen[1, 4:] = 0
    return (x, torch.rand(2, dtype=dtype) * 10, torch.tensor([1, 4]), grid, *((seen,) if mask else ()))


def dit(dtype):
    ours = nn.DiT(8, 2, 3, DIM, 2, HEADS, num_classes=CLASSES)
    twin = twins.DiT(8, 2, 3, DIM, 2, HEADS, CLASSES)
    return ours, twin, (images(dtype), torch.rand(2, dtype=dtype) * 999, torch.tensor([0, 4]))


def fit(dtype):
    ours = nn.FiT(2, 3, DIM, 2, HEADS, num_classes=CLASSES, mlp="swiglu_large")
    return ours, twins.FiT(2, 3, DIM, 2, HEADS, CLASSES, large=True), tokens(dtype)


def fit2(dtype, weight=False, plain=False):
    options = {"qk_norm": "layer", "qk_norm_weight": weight, "adaln_lora_dim": 8, "mlp": "gelu" if plain else "swiglu"}
    ours = nn.FiT(2, 3, DIM, 2, HEADS, num_classes=CLASSES, learn_sigma=False, **options)
    twin = twins.FiT(2, 3, DIM, 2, HEADS, CLASSES, rank=8, norm=True, weight=weight, plain=plain)
    return ours, twin, tokens(dtype)


def unet(kind, dtype):
    u = UNETS[kind]
    ours = nn.UNet(
        8, 3, 3, 4, 9, kind, u["width"], u["mults"], u["blocks"], u["attended"], dropout=0.0, channels_per_head=8
    )
    twin = twins.UNet(8, kind, u["width"], u["mults"], u["blocks"], u["attended"], 4, 9)
    labels = torch.eye(4, dtype=dtype)[[1, 3]]
    return ours, twin, (images(dtype), torch.randn(2, dtype=dtype), labels, torch.randn(2, 9, dtype=dtype))


MODELS = {
    "DiT": dit,
    "FiT": fit,
    "FiTv2": fit2,
    "FiTv2, weights of qk": lambda d: fit2(d, weight=True),
    "FiTv2, GELU": lambda d: fit2(d, plain=True),
    **{kind: lambda d, kind=kind: unet(kind, d) for kind in UNETS},
}


def randomised(twin, ours, dtype):
    """Both with the twin's parameters, none of them zero."""
    for p in (*twin.parameters(), *(b for n, b in twin.named_buffers() if n.endswith("freqs"))):
        p.data = torch.randn(p.shape) * (0.5 / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.3)
    twin, ours = twin.to(dtype).eval(), ours.to(dtype).eval()
    ours.load_state_dict(twin.state_dict())
    assert set(ours.state_dict()) == set(twin.state_dict())
    return twin, ours


def run(model, arguments):
    """The output, and the gradients of a weighted sum of it in the input and every parameter."""
    x = arguments[0].clone().requires_grad_()
    y = model(x, *arguments[1:])
    wrt = {"input": x, **{n: p for n, p in model.named_parameters() if p.requires_grad}}
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y.detach(), dict(zip(wrt, torch.autograd.grad((y * weights).sum(), list(wrt.values())), strict=True))


def error(got, want):
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_twin(name, dtype):
    ours, twin, arguments = MODELS[name](dtype)
    twin, ours = randomised(twin, ours, dtype)
    got, got_grads = run(ours, arguments)
    want, want_grads = run(twin, arguments)
    judge, _ = run(copy.deepcopy(twin).double(), [a.double() if a.is_floating_point() else a for a in arguments])
    assert got.shape == want.shape and got.dtype == dtype
    assert set(got_grads) == set(want_grads)
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    assert error(got, want) < bound
    for key, grad in want_grads.items():
        assert error(got_grads[key], grad) < bound, key
    if dtype == torch.float32:
        assert error(got, judge) < 5e-6


def test_padding_is_not_seen():
    """Rows under the mask change nothing in the others; FiT's checkpoints may carry tables."""
    ours, twin, _ = fit2(torch.float64)
    twin, ours = randomised(twin, ours, torch.float64)
    state = {**twin.state_dict(), "rel_pos_embed.freqs_h_cached": torch.zeros(3)}
    ours.load_state_dict(state)
    x, t, y, grid, seen = tokens(torch.float64, mask=True)
    other = x.clone()
    other[1, 4:] += 1
    got, changed, want = ours(x, t, y, grid, seen), ours(other, t, y, grid, seen), twin(x, t, y, grid, seen)
    kept = seen.bool()
    assert torch.equal(got[kept], changed[kept])
    assert error(got[kept], want[kept]) < 1e-10
    assert not got[~kept].any()


def test_images_packed_into_one_row():
    model = fit2(torch.float64)[0].double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, t, y, grid = tokens(torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 2, 2], [3, 3, 4, 4, 4, 0]])
    got = model(x, t, y, grid, mask)
    for i, part in ((0, slice(0, 4)), (0, slice(4, 6)), (1, slice(0, 2)), (1, slice(2, 5))):
        one = [a[i : i + 1] for a in (t, y)]
        alone = model(x[i : i + 1, part], *one, grid[i : i + 1, :, part])
        assert error(got[i : i + 1, part], alone) < 1e-12
    assert not got[1, 5].any()


@pytest.mark.parametrize("kind", ["adm", "ncsn++"])
def test_precondition(kind):
    ours, twin, (x, _, labels, augment) = unet(kind, torch.float64)
    twin, ours = randomised(twin, ours, torch.float64)
    sigma = torch.tensor([0.3, 40.0], dtype=torch.float64)
    want = twins.precondition(lambda z, c: twin(z, c, labels, augment), x, sigma)
    model = nn.EDMPrecond(ours, label_dim=4)
    assert all(k.startswith("model.") for k in model.state_dict())
    assert error(model(x, sigma, labels, augment_labels=augment), want) < 1e-12
    nobody = twins.precondition(lambda z, c: twin(z, c, 0 * labels, 0 * augment), x, sigma[:1].expand(2))
    assert error(model(x, 0.3), nobody) < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_empty_batches(name):
    ours, _, arguments = MODELS[name](torch.float32)
    want = ours(*arguments).shape[1:]
    got = ours(*(a[:0] for a in arguments))
    got.sum().backward()
    assert got.shape == (0, *want)
    assert all(p.grad is None or not p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_without_memory_and_in_another_dtype(name):
    """Made on "meta" and filled from a state dict (large models are); made with another default dtype."""
    ours, _, arguments = MODELS[name](torch.float32)
    want = ours.eval()(*arguments)
    with torch.device("meta"):
        empty = MODELS[name](torch.float32)[0].eval()
    empty.load_state_dict(ours.state_dict(), assign=True)
    assert torch.equal(empty(*arguments), want)
    torch.set_default_dtype(torch.bfloat16)
    try:
        half, _, arguments = MODELS[name](torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert half(*arguments).dtype == torch.bfloat16


def test_channels_last_is_kept():
    ours, twin, (x, *rest) = unet("adm", torch.float32)
    _, ours = randomised(twin, ours, torch.float32)
    want = ours(x, *rest)
    got = ours.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), *rest)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert error(got, want) < 1e-5


def small_block(**options):
    block = nn.DiTBlock(DIM, HEADS, **options)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return block


def test_deferred_sums_are_the_same():
    block, after = small_block(), small_block()
    x, c = torch.randn(2, 5, DIM), torch.randn(2, DIM)
    want = after(block(x, c), c)
    got = after(*(lambda stream, pending: (stream, c, pending))(*block(x, c, defer=True)))
    assert error(got, want) < 1e-6


def test_blocks_can_be_computed_again_for_the_gradient():
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    ours, twin, arguments = dit(torch.float32)
    _, ours = randomised(twin, ours, torch.float32)
    want, want_grads = run(ours, arguments)
    state = list(ours.state_dict())
    wrapper.apply_activation_checkpointing(ours, check_fn=lambda m: isinstance(m, nn.DiTBlock))
    got, got_grads = run(ours, arguments)
    assert torch.equal(got, want) and list(ours.state_dict()) == state
    assert all(torch.equal(a, b) for a, b in zip(got_grads.values(), want_grads.values(), strict=True))


def test_autocast_keeps_the_stream():
    block = small_block()
    x, c = torch.randn(2, 5, DIM), torch.randn(2, DIM)
    want = block.double()(x.double(), c.double())
    block.float()
    with torch.autocast("cpu", torch.bfloat16):
        got = block(x, c)
    assert got.dtype == torch.float32
    assert error(got, want) < 0.03
    assert block.bfloat16()(x.bfloat16(), c.bfloat16()).dtype == torch.bfloat16


def test_adaptive_norms_beside_diffusers():
    theirs = pytest.importorskip("diffusers.models.normalization")
    x, emb = torch.randn(2, 5, DIM, dtype=torch.float64), torch.randn(2, DIM, dtype=torch.float64)
    pairs = [(nn.AdaLayerNormZero(DIM), theirs.AdaLayerNormZero(DIM), {"emb": emb})]
    for norm in ("layer_norm", "rms_norm"):
        for affine in (True, False):
            options = {"elementwise_affine": affine, "norm_type": norm}
            made = (m.AdaLayerNormContinuous(DIM, DIM, **options) for m in (nn, theirs))
            pairs.append((*made, {}))
    for ours, twin, named in pairs:
        for p in twin.double().parameters():
            torch.nn.init.normal_(p)
        ours.double().load_state_dict(twin.state_dict())
        got, want = (m(x, **named) if named else m(x, emb) for m in (ours, twin))
        for a, b in zip(got, want, strict=True):
            assert error(a, b) < (1e-6 if "RMS" in str(twin) else 1e-12)  # theirs squares in float32


def test_label_dropout_and_low_rank():
    model = nn.DiT(8, 2, 3, DIM, 1, HEADS, num_classes=CLASSES, class_dropout_prob=1.0)
    labels = torch.arange(CLASSES)
    table = model.y_embedder.embedding_table.weight
    assert torch.equal(model.train().y_embedder(labels), table[-1:].expand(CLASSES, -1))
    assert torch.equal(model.eval().y_embedder(labels), table[:CLASSES])
    lora = nn.AdaLNLoRA(DIM, 4)
    c, shared = torch.randn(2, DIM), torch.randn(2, 6 * DIM)
    assert set(lora.state_dict()) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert torch.equal(lora(c, shared), shared)  # zero at the start
    assert torch.equal(model.final_layer(torch.randn(2, 16, DIM), c), torch.zeros(2, 16, 24))


def test_bad_input():
    with pytest.raises(ValueError, match=r"hidden_size \(30\) must be a multiple of num_heads \(4\)"):
        nn.DiTBlock(30, 4)
    with pytest.raises(ValueError, match="qk_norm must be one of None, 'layer', 'rms', not 'batch'"):
        nn.FiTBlock(DIM, HEADS, qk_norm="batch")
    with pytest.raises(ValueError, match=r"input_size \(9\) must be a multiple of patch_size \(2\)"):
        nn.DiT(9, 2)
    with pytest.raises(ValueError, match="four times num_heads"):
        nn.FiT(hidden_size=24, num_heads=4, depth=1)
    with pytest.raises(ValueError, match="architecture must be one of 'adm', 'ddpm\\+\\+', 'ncsn\\+\\+', not 'vit'"):
        nn.UNet(8, architecture="vit")
    with pytest.raises(ValueError, match=r"img_resolution \(6\) must halve 2 times"):
        nn.UNet(6, channel_mult=(1, 1, 1))
    with pytest.raises(ValueError, match="up and down cannot both"):
        nn.ResnetBlock2D(8, 8, 4, up=True, down=True)
    with pytest.raises(ValueError, match="multiple of its 32 groups"):
        nn.ResnetBlock2D(130, 8, 4)
    with pytest.raises(ValueError, match="norm_type must be"):
        nn.AdaLayerNormContinuous(8, 8, norm_type="group")
    model = nn.DiT(8, 2, 3, DIM, 1, HEADS)
    for x in (images(torch.float32, 4), torch.randn(2, 3, 4, 16)):  # the latter has as many patches
        with pytest.raises(ValueError, match=r"x must hold images of 8 x 8, not 4 x (4|16)"):
            model(x, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    net = unet("adm", torch.float32)[0]
    with pytest.raises(ValueError, match="sides are multiples of 2, not 7 x 8"):
        net(torch.randn(2, 3, 7, 8), torch.zeros(2))
    with pytest.raises(ValueError, match=r"sigma must have one entry or 2, one a sample, not \(3,\)"):
        nn.EDMPrecond(net)(images(torch.float32), torch.ones(3))
    flexible = nn.FiT(2, 3, DIM, 1, HEADS)
    x, t, y, grid = tokens(torch.float32)
    with pytest.raises(ValueError, match=r"grid must be \(2, 2, 6\): column and row of each token"):
        flexible(x, t, y, grid[:, :, :5])
    with pytest.raises(ValueError, match=r"mask must be \(2, 6\), a number for each token; it is \(2, 5\)"):
        flexible(x, t, y, grid, torch.ones(2, 5))


@pytest.mark.slow
def test_compiles_whole():
    block = small_block()
    x, c = torch.randn(2, 5, DIM, requires_grad=True), torch.randn(2, DIM)
    want = block(x, c)
    got = torch.compile(block, fullgraph=True, backend="aot_eager")(x, c)
    assert error(got.detach(), want.detach()) < 1e-5
    one, other = (torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want))
    assert error(one, other) < 1e-5
