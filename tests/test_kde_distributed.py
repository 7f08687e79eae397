"""`KDEState.all_reduce` over four processes of torch.distributed (gloo, on the CPU): the sums of one process."""

import multiprocessing
import os
import tempfile

import numpy as np
import pytest
import torch

from fokker import kde

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
PROCESSES = 4
OUTPUTS = ("log_prob", "score", "laplacian", "effective_sample_size")
NEAREST = ("nearest", "nearest_distance")
#: kernel, shards that have data, outputs
CASES = (("gaussian", 4, OUTPUTS), ("gaussian", 3, OUTPUTS), ("epanechnikov", 4, OUTPUTS[:2]), ("gaussian", 3, NEAREST))


def problem():
    g = torch.Generator().manual_seed(11)
    x = torch.randn(50, 5, generator=g, dtype=torch.float64)
    y = torch.randn(403, 5, generator=g, dtype=torch.float64)  # shards of unequal size
    w = torch.rand(403, generator=g, dtype=torch.float64)
    x[0] += 300.0  # its sums underflow but for the shift
    return x, y, w


def worker(rank, meeting, queue):
    """One process: its shard of the data (in one case none at all for the last rank), then the whole."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=PROCESSES)
    x, y, w = problem()
    results = []
    for kernel, shards, outputs in CASES:
        state = kde.KDEState(x, 0.7, outputs=outputs, kernel=kernel)
        if rank < shards:
            state.update(y[rank::shards], w[rank::shards])
        found = state.all_reduce().result()
        results.append(({name: value.numpy() for name, value in found.items()}, float(state.total)))
    queue.put((rank, results))
    torch.distributed.destroy_process_group()


def test_shards_of_four_processes():
    """Every process ends with the same bits, equal to one pass over all data to rounding; an empty shard is nothing."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=worker, args=(rank, f"{folder}/meeting", queue)) for rank in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        results = dict(queue.get(timeout=600) for _ in processes)  # a throttled machine
        for process in processes:
            process.join(timeout=60)
            assert process.exitcode == 0
    x, y, w = problem()
    for case, (kernel, shards, outputs) in enumerate(CASES):
        want = kde.evaluate(x, y, 0.7, weights=w, kernel=kernel, outputs=outputs)
        if "nearest" in outputs:  # numbered shard after shard
            order = torch.cat([torch.arange(len(y))[rank::shards] for rank in range(shards)])
            want["nearest"] = torch.argsort(order)[want["nearest"]]
        for rank in range(PROCESSES):
            found, total = results[rank][case]
            assert total == pytest.approx(float(w.sum()), rel=1e-14)
            for name in outputs:
                np.testing.assert_array_equal(found[name], results[0][case][0][name])
                # a Laplacian is a difference of squares as large as |score|^2
                slack = 1e-14 * want["score"].square().sum(-1).numpy() if name == "laplacian" else 0.0
                expected = want[name].numpy()
                with np.errstate(invalid="ignore"):
                    error = np.where(found[name] == expected, 0.0, np.abs(found[name] - expected) - slack)
                assert (error <= 1e-11 + 1e-11 * np.abs(expected)).all(), (kernel, name, error.max())
