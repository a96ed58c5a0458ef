"""µs of the host that a call takes from torch, nothing waited for between calls. One rank, or several of a host:

    python tests/python/host_cost.py [cpu|cuda]
    torchrun --nproc-per-node 2 tests/python/host_cost.py cuda

Calls on a GPU launch. On the cpu a call does its work before it returns, so there it is given 0 rows: all but the work.
PYTHONPATH has the package. Columns: `bound` is what boundary.bind() gave; `given` a call with outputs given; `made` one
that makes them; `torch.ops` the operator that compiled code calls, through torch's dispatcher; `add_` torch's own
smallest call, as a measure of the machine. Of each the median of 25 times 200 calls, and the least.
"""
import os
import statistics
import sys
import time

HIDDEN, MAX_ROWS = 4096, 256
COLUMNS = "bound", "given", "made", "torch.ops", "add_"


def on_own_core(rank, ranks):
    """Gives each rank a core of its own, where there are enough. Returns the cores that it had."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= 4 * ranks:
        os.sched_setaffinity(0, {cores[len(cores) // ranks * rank + 2]})
    return cores


def times_of(runs, meet, calls=200, repeats=25):
    """(median, least) µs a call, of each of `runs` in turn; meet() comes in front of every loop of calls."""
    found = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, times in zip(runs, found):
            meet()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            if repeat:
                times.append((time.perf_counter() - start) * 1e6 / calls)
    return [(statistics.median(times), min(times)) for times in found]


def main():
    import tenon
    import tenon.torch
    import torch

    target = sys.argv[1] if len(sys.argv) > 1 else tenon.default_target()
    device = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count() if target == "cuda" else 0
    if target == "cuda":
        torch.cuda.set_device(device)
    communicator = tenon.Communicator.from_environment(target=target, device=device, deadline=20.0)

    def meet():
        if target == "cuda":
            torch.cuda.synchronize()
        communicator.barrier()

    def say(*words):
        if communicator.rank == 0:
            print(*words, flush=True)

    say(f"tenon {tenon.__version__} {tenon.commit()}, torch {torch.__version__}, {communicator.num_ranks} ranks on",
        torch.cuda.get_device_name() if target == "cuda" else "the cpu")
    say("µs a call, median (least)")
    say("rows" + "".join(f"{name:>16}" for name in COLUMNS))
    on_own_core(communicator.rank, communicator.num_ranks)
    for count in (1, 4, 16, 64, 256) if target == "cuda" else (0,):
        with tenon.torch.Boundary(communicator, hidden=HIDDEN, max_rows=MAX_ROWS) as boundary:
            partial = torch.ones(count, HIDDEN, dtype=torch.bfloat16, device="cuda" if target == "cuda" else "cpu")
            residual = torch.zeros_like(partial)
            weight = torch.ones(HIDDEN, dtype=torch.bfloat16, device=partial.device)
            rows, codes, scales = boundary.outputs_like(partial)
            operator, name = torch.ops.tenon.boundary.default, boundary.name
            bound = boundary.bind(partial, residual, weight, rows=rows, codes=codes, scales=scales)
            found = times_of([
                bound,
                lambda: boundary(partial, residual, weight, rows=rows, codes=codes, scales=scales),
                lambda: boundary(partial, residual, weight),
                lambda: operator(name, partial, residual, weight, rows, codes, scales),
                lambda: residual.add_(1)], meet)
            meet()
            communicator.health()
            say(f"{count:4}" + "".join(f"{f'{middle:.2f} ({least:.2f})':>16}" for middle, least in found))
    communicator.close()


if __name__ == "__main__":
    main()
