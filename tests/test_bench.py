"""``python -m fokker bench``: every family's entries can be built, and one measured."""

import pytest

from fokker._cli.bench import measure
from fokker._cli.benches import families

MAKERS = [
    pytest.param(make, id=f"{name} {i}") for name, makers in families(64).items() for i, make in enumerate(makers)
]


@pytest.mark.parametrize("make", MAKERS)
def test_every_family_s_first_entry(make):
    bench = next(make(), None)
    if bench is None:
        pytest.skip("the opponent is not installed")
    assert len(bench.contenders) > 1 and all(callable(run) for run in bench.contenders.values())
    assert set(bench.asked) < set(bench.contenders), "a ratio is asked to a contender that there is"


def test_measure():
    bench = next(families(64)["Bessel functions"][0]())
    row = measure(bench, rounds=2, target=1e-5)
    assert set(row["ratio"]) == set(bench.contenders) - {"fokker"} and all(x > 0 for x in row["ratio"].values())
