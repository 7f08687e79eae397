"""The host emulator: known answers for its collectives, the CUDA kernels on it in three orders, and the sanitizers.

Everything is compiled here with the C++ compiler of the machine, from ``csrc/emu/test`` and ``csrc/cuda``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
ORDERS = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]
BESSEL = ["cuda/bessel", "cuda/bessel_value", "cuda/bessel_gradient", "cuda/bessel_hessian"]
VMF = ["cuda/vmf", "cuda/vmf_sample", "cuda/vmf_gradient", "cuda/resultant", "cuda/mixture"]

# -g would cost minutes in the variable tracking of these long inlined bodies; reports name the functions without it.
PLAIN = ("-O1",)
ADDRESS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DFK_LAUNCH_ONLY")
THREAD = ("-O1", "-fsanitize=thread", "-DFOKKER_EMU_THREADS", "-DFK_LAUNCH_ONLY")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (set CXX)"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="needs the source tree"),
    pytest.mark.skipif(platform.system() != "Linux", reason="the emulator's fibers are for Linux"),
]


def _call(arguments: list[str], timeout: float = 900) -> subprocess.CompletedProcess[str]:
    # Address randomisation beyond 28 bits is more than older thread sanitizers can map.
    prefix = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    return subprocess.run([*prefix, *arguments], capture_output=True, text=True, timeout=timeout)


class Builds:
    """Compiles each unit once per set of flags."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cpu = Path("/proc/cpuinfo")
        fma = cpu.exists() and " fma " in cpu.read_text()  # as a GPU has it; without, fma is a slow library call
        self.base = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w", "-pthread"]
        self.base += ["-mfma"] if fma else []
        self.base += ["-DFOKKER_EMU", f"-I{CSRC / 'emu' / 'include'}", f"-I{CSRC}"]
        self.objects: dict[tuple[str, tuple[str, ...]], Path] = {}

    def _object(self, unit: str, flags: tuple[str, ...]) -> Path:
        path = self.folder / f"{len(self.objects)}-{Path(unit).name}.o"
        self.objects[unit, flags] = path
        return path

    def program(self, driver: str, units: list[str], flags: tuple[str, ...]) -> str:
        wanted = [f"emu/test/{driver}", *units]
        new = [u for u in wanted if (u, flags) not in self.objects]
        jobs = [(u, self._object(u, flags)) for u in new]

        def build(job: tuple[str, Path]) -> None:
            unit, path = job
            command = [COMPILER, *self.base, *flags, "-x", "c++", "-c", str(CSRC / f"{unit}.cu"), "-o", str(path)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]

        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(build, jobs))
        out = self.folder / f"{driver}{abs(hash(flags))}"
        objects = [str(self.objects[u, flags]) for u in wanted]
        done = subprocess.run([COMPILER, *flags, *objects, "-pthread", "-o", str(out)], capture_output=True, text=True)
        if done.returncode != 0 and any("sanitize" in f for f in flags) and "cannot find" in done.stderr:
            pytest.skip(f"the compiler has no runtime for {flags[1]}")
        assert done.returncode == 0, done.stderr[-4000:]
        return str(out)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("emulator"))


def _good(done: subprocess.CompletedProcess[str]) -> str:
    bad = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 0 and not bad, "\n".join(bad) + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_collectives(builds: Builds, order: str, seed: int) -> None:
    """Every collective, atomic and launch error against its known answer, twice in one process."""
    out = _good(_call([builds.program("collectives", [], PLAIN), order, str(seed)]))
    assert out.count("ok ") >= 45


def test_unset_shared_memory_is_nan(builds: Builds) -> None:
    """A kernel that sums shared memory nobody wrote gets nan, not what the last kernel left there."""
    done = _call([builds.program("collectives", [], PLAIN), "forward", "0", "uninitialised"])
    assert done.stdout.strip().lstrip("sum -") == "nan"


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "units", "checks"), [("bessel_kernels", BESSEL, 90), ("vmf_kernels", VMF, 250)])
def test_kernels(builds: Builds, driver: str, units: list[str], checks: int) -> None:
    """The CUDA kernels give the bits of the scalar functions they are made of, and the same bits in every order."""
    program = builds.program(driver, units, PLAIN)
    digests = set()
    for order, seed in ORDERS:
        out = _good(_call([program, order, str(seed)]))
        assert out.count("ok ") >= checks
        digests.add(out.splitlines()[-1])
    assert len(digests) == 1 and digests.pop().startswith("digest ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "units", "size"),
    [("collectives", [], ()), ("bessel_kernels", BESSEL, ("150",)), ("vmf_kernels", VMF, ("quick",))],
)
def test_address_and_undefined_behaviour(builds: Builds, driver: str, units: list[str], size: tuple[str, ...]) -> None:
    """No bad access, no leak and no undefined behaviour, in forward and in random order."""
    program = builds.program(driver, units, ADDRESS)
    for order in ("forward", "random"):
        done = _call([program, order, "5", *size])
        _good(done)
        assert "ERROR" not in done.stderr and "runtime error" not in done.stderr, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "units", "size"),
    [("collectives", [], ()), ("bessel_kernels", BESSEL, ("20",)), ("vmf_kernels", VMF, ("quick",))],
)
def test_data_races(builds: Builds, driver: str, units: list[str], size: tuple[str, ...]) -> None:
    """No data race with one host thread per CUDA thread."""
    done = _call([builds.program(driver, units, THREAD), "random", "7", *size])
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer cannot map its shadow memory here")
    _good(done)
    assert "WARNING: ThreadSanitizer" not in done.stderr, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "fault", "report"), [(ADDRESS, "overrun", "use-after-poison"), (THREAD, "race", "data race")]
)
def test_sanitizers_see_faults(builds: Builds, flags: tuple[str, ...], fault: str, report: str) -> None:
    """Controls: an overrun of a shared array and a missing barrier are both reported."""
    done = _call([builds.program("collectives", [], flags), "forward", "0", fault])
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer cannot map its shadow memory here")
    assert done.returncode != 0 and report in done.stderr, done.stderr[-2000:]
