"""Philox words and normals: known answers, the same bits on every build, and the PyTorch reference beside them."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from cpp import programs as build

from fokker.reference import random as reference

SEED, STEP, STREAM, SAMPLE = 0x0123456789ABCDEF, 7, 0, 3
PLACE = (SEED, STEP, STREAM, SAMPLE)

# Random123's known answers for philox4x32, 10 rounds: counter, key, words.
KNOWN_PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
# fokker's layout, at PLACE: block, words, float normals, double normals (bits).
KNOWN_BLOCKS = [
    (
        0,
        "7f6d5b08 ce4f4cdc c70f4cea 1e7c5815",
        "befe69cc bf892a9d 3f357658 bcd7ea3b",
        "bfe5b83249c6f564 bfeeef861e63989d",
    ),
    (
        1,
        "2ba6422a 07eb21b8 950d861f 57ce4d95",
        "3fc7eb00 bf862906 3e54c0b4 3f827237",
        "bffd03f289f5624e 3fdff4e66eeb159f",
    ),
]
# FNV-1a of the words, float normals (1 M) and double normals (half a million) of blocks 0 .. 2^18 - 1 at PLACE.
KNOWN_HASHES = "d9e6e1d32673bfe3 9b3f182893d85468 ab6776ddd8150d4b"

DTYPES = {"float": np.float32, "double": np.float64, "words": np.uint32}
DTYPES |= {"uniform_float": np.float32, "uniform_double": np.float64}


def require(isa: str = "baseline") -> None:
    reason = build.why_not(isa)
    if reason:
        pytest.skip(reason)


def dump(kind: str, first: int, blocks: int, place: tuple[int, ...] = PLACE, isa: str = "baseline") -> np.ndarray:
    arguments = map(str, (*place, first, blocks))
    return np.frombuffer(build.run_bytes("noise", "dump", kind, *arguments, isa=isa), DTYPES[kind])


def from_hex(text: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_PHILOX)
def test_philox_known_answers(counter: str, key: str, words: str) -> None:
    assert torch.equal(reference.philox(from_hex(counter), from_hex(key)), from_hex(words))
    require()
    assert build.run("noise", "philox", *counter.split(), *key.split()).strip() == words


@pytest.mark.parametrize("isa", list(build.FLAGS))
@pytest.mark.parametrize(("block", "words", "floats", "doubles"), KNOWN_BLOCKS)
def test_block_known_answers(isa: str, block: int, words: str, floats: str, doubles: str) -> None:
    require(isa)
    lines = build.run("noise", "block", *map(str, (*PLACE, block)), isa=isa).splitlines()
    assert [line.strip() for line in lines] == [words, floats, doubles]


@pytest.mark.parametrize(("isa", "contract"), list(itertools.product(build.FLAGS, ["off", "fast"])))
def test_same_bits_on_every_build(isa: str, contract: str) -> None:
    """Words and normals, block by block and in rows, whatever the instruction set and the compiler's contraction."""
    require(isa)
    lines = build.run("noise", "hash", *map(str, (*PLACE, 2**18)), isa=isa, contract=contract).splitlines()
    assert [line.strip() for line in lines] == [KNOWN_HASHES, KNOWN_HASHES]


def test_rows_start_anywhere() -> None:
    require()
    whole = dump("float", 0, 256)
    assert np.array_equal(dump("float", 72, 136)[: 4 * 136], whole[4 * 72 : 4 * 208])
    other = (SEED, STEP, STREAM, SAMPLE + (1 << 40))
    assert not np.isin(dump("words", 0, 256, other), dump("words", 0, 256)).any()


def test_normals_are_accurate() -> None:
    """Against the transform in long double of the same rounded u; the figures are those of math/normal.h."""
    require()
    n = 2**17
    words = dump("words", 0, n).astype(np.uint64).reshape(-1, 4)
    for kind, worst in (("float", 7e-7), ("double", 1.5e-15)):
        z = dump(kind, 0, n).reshape(-1, 2)
        if kind == "float":
            u = dump("uniform_float", 0, n)[0::2].astype(np.longdouble)
            angle = words[:, 1::2].reshape(-1).astype(np.longdouble)
        else:
            u = dump("uniform_double", 0, n)[0::2].astype(np.longdouble)
            angle = words[:, 2].astype(np.longdouble) + words[:, 3].astype(np.longdouble) / 2**32
        turns = (angle - 2**29) / np.longdouble(2**32)
        theta = turns * np.longdouble("6.283185307179586476925286766559")
        radius = np.sqrt(-2 * np.log(u))
        error = np.abs(z - np.stack((radius * np.cos(theta), radius * np.sin(theta)), 1)).max()
        assert error <= worst, f"{kind}: {float(error)}"


def test_reference_words_and_uniforms_are_the_same_bits() -> None:
    require()
    place = (2**64 - 12345, 2**24 - 1, 11, 2**63 + 99)
    ids = [place[3] - 2**64]  # the same 64 bits
    for kind, elements in (("words", 1024), ("uniform_float", 1024), ("uniform_double", 512)):
        got = dump(kind, 0, 256, place)
        if kind == "words":
            want = reference.words(*place[:3], ids, elements)[0].numpy()
        else:
            dtype = torch.float32 if kind == "uniform_float" else torch.float64
            want = reference.uniform(*place[:3], ids, elements, dtype=dtype)[0].numpy()
        assert np.array_equal(got, want), kind


@pytest.mark.parametrize(
    ("kind", "dtype", "per_block", "worst"), [("float", torch.float32, 4, 1e-6), ("double", torch.float64, 2, 5e-15)]
)
def test_reference_normals(kind: str, dtype: torch.dtype, per_block: int, worst: float) -> None:
    require()
    n = 2**14
    z = reference.normal(*PLACE[:3], [SAMPLE], per_block * n, dtype=dtype)
    assert z.dtype == dtype and z.shape == (1, per_block * n)
    assert np.abs(z[0].numpy() - dump(kind, 0, n)).max() <= worst


def test_reference_depends_on_the_place_alone() -> None:
    ids = torch.tensor([5, 2**40, 0])
    for function in (reference.words, reference.uniform, reference.normal):
        whole = function(SEED, 1, reference.Stream.CHURN, ids, 37)
        assert whole.shape == (3, 37)
        for i, sample in enumerate(ids.tolist()):
            for offset, count in ((0, 37), (1, 5), (3, 1), (6, 31), (36, 1), (9, 0)):
                part = function(SEED, 1, 2, [sample], count, offset)
                assert torch.equal(part[0], whole[i, offset : offset + count])
        assert not torch.equal(whole, function(SEED, 2, 2, ids, 37))
        assert not torch.equal(whole, function(SEED, 1, 3, ids, 37))
        assert not torch.equal(whole, function(SEED + 2**33, 1, 2, ids, 37))
    double = reference.normal(1, 2, 3, ids, 10, dtype=torch.float64)
    assert torch.equal(reference.normal(1, 2, 3, ids, 4, 3, dtype=torch.float64), double[:, 3:7])


def test_reference_refuses_what_the_counter_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"step must be in \[0, 2\^24\), got 16777216"):
        reference.words(0, 2**24, 0, [0], 1)
    with pytest.raises(ValueError, match="stream"):
        reference.words(0, 0, 256, [0], 1)
    with pytest.raises(ValueError, match="elements"):
        reference.words(0, 0, 0, [0], 2, 2**34 - 1)
    with pytest.raises(ValueError, match="sample_ids"):
        reference.words(0, 0, 0, torch.zeros(2, 2, dtype=torch.int64), 1)
    with pytest.raises(TypeError, match="float32 or float64"):
        reference.normal(0, 0, 0, [0], 1, dtype=torch.float16)
    with pytest.raises(TypeError, match="int64"):
        reference.philox(torch.zeros(4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\)"):
        reference.philox(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))


def test_streams_agree() -> None:
    header = (build.ROOT / "csrc" / "math" / "philox.h").read_text()
    body = re.search(r"enum class Stream : uint32_t \{(.*?)\};", header, re.S)
    assert body is not None
    cpp = {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", body[1])}
    assert cpp == {stream.name.lower(): stream.value for stream in reference.Stream}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_look_normal(dtype: torch.dtype) -> None:
    """Five moments and Kolmogorov-Smirnov at a fixed seed; each limit would fail one seed in a million."""
    n, limit = 2**18, 4.9  # two-sided normal tail 1e-6
    z = reference.normal(42, 3, 9, range(8), n // 8, dtype=dtype).double().flatten()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean().item() - mean) <= limit * math.sqrt(variance / n)
    pairs = z.view(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean().item()) <= limit / math.sqrt(n / 2)
    cdf = torch.special.ndtr(z.sort().values)
    grid = torch.arange(n, dtype=torch.float64) / n
    distance = max((cdf - grid).max().item(), (grid + 1 / n - cdf).max().item())
    assert distance * math.sqrt(n) <= 2.7  # 2 exp(-2 * 2.7^2) = 9e-7
