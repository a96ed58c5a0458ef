"""The boundary from torch on GPUs: every bit judged by the reference, and times. One rank, or several of a host:

    torchrun --nproc-per-node 2 tests/python/cuda_check.py

PYTHONPATH has the package of a build with CUDA, ORACLE_LIBRARY is that build's tests/libpython_oracle.so. Exits with
1 where a bit differs. The table on standard output says what each column is. --bits and --times: these alone; --graphs:
of the times those of graphs of the boundary alone. What eager calls take the host: host_cost.py.
"""
import os
import statistics
import sys

import tenon
import tenon.torch
import torch
import torch.distributed as dist

from host_cost import on_own_core, times_of
from oracle import LAYOUTS, case, difference, inputs, spec

HIDDEN, GROUP, EPS = 4096, 128, 1e-6
ROWS = (1, 4, 16, 64, 256, 1024)
failures = []


def say(*words):
    if rank == 0:
        print(*words, flush=True)


def tensors(shape):
    return [torch.from_numpy(bits).view(torch.bfloat16).cuda() for bits in inputs(shape, rank)]


def judge(what, shape, out):
    torch.cuda.synchronize()
    communicator.health()
    why = difference(shape, tenon.Outputs(*[each.cpu() for each in out]))
    if why:
        failures.append(f"rank {rank}: {what}, {shape.rows} rows, {LAYOUTS[shape.layout]}: {why}")


def captured(run):
    """A graph of what run() launches, after one run outside of it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph


def check_bits():
    for layout in LAYOUTS:
        for rows in (1, 5, 64, 300):
            shape = case(rows, HIDDEN, world, layout=layout, offset=1.0)
            boundary = tenon.torch.Boundary(communicator, max_rows=512, **spec(shape))
            partial, residual, weight = tensors(shape)
            judge("eager", shape, boundary(partial, residual.clone(), weight))

            kept = residual.clone()
            places = dict(zip(("rows", "codes", "scales"), boundary.outputs_like(partial)))
            graph = captured(lambda: boundary(partial, kept, weight, **places))
            for _ in range(3):
                kept.copy_(residual)
                for place in places.values():
                    place.view(torch.uint8).fill_(0xAA)
                graph.replay()
                judge("graph", shape, tenon.Outputs(kept, **places))
            if rows == 5:
                check_compiled(boundary, shape, partial, residual, weight)
            boundary.close()


def check_compiled(boundary, shape, partial, residual, weight):
    for backend in ("aot_eager", "inductor"):
        torch._dynamo.reset()
        try:
            run = torch.compile(lambda p, r: tuple(boundary(p * 1, r, weight)), fullgraph=True, backend=backend)
            with torch.no_grad():
                judge(f"compiled by {backend}", shape, run(partial, residual.clone()))
        except Exception as error:  # where there is no compiler for inductor
            say(f"torch.compile with {backend}: {type(error).__name__}: {str(error).splitlines()[0]}")
            if backend == "aot_eager":
                failures.append(str(error))


def quantised(normed):
    groups = normed.float().view(normed.shape[0], -1, GROUP)
    most = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10)
    return (groups * (448.0 / most)).to(torch.float8_e4m3fn).view_as(normed), (most * (1 / 448.0)).squeeze(-1)


def epilogue(summed, residual, weight):
    residual.add_(summed)
    normed = torch.nn.functional.rms_norm(residual, (HIDDEN,), weight, EPS)
    return normed, quantised(normed)


def time_in_a_graph(runs, calls=512, repeats=15):
    """µs a call of each of `runs`: the median of replays, in turns, of the slowest rank. A graph is, as that of
    `tenon bench boundary`, a small all-reduce that lets the ranks start together, an event, the calls, an event."""
    small = torch.zeros(8, dtype=torch.bfloat16, device="cuda")

    def timed(run):
        events = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(2)]

        def every():
            communicator.all_reduce(small)
            events[0].record()
            for _ in range(calls):
                run()
            events[1].record()
        return captured(every), events

    graphs = [timed(run) for run in runs]
    found = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, (graph, (begin, end)), times in zip(runs, graphs, found):
            run(), run()
            meet()
            graph.replay()
            torch.cuda.synchronize()
            slowest = torch.tensor([begin.elapsed_time(end) * 1000 / calls], device="cuda")
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            if repeat:  # the first replay loads the graph
                times.append(slowest.item())
    return [statistics.median(times) for times in found]


def of_rows(rows, **spec):
    """A boundary of the most rows, and what a call with `rows` rows is given: arguments, and places of outputs."""
    channel = tenon.Channel(communicator, hidden=HIDDEN, max_rows=ROWS[-1],
                            sharded_residual=spec.pop("sharded_residual", False))
    boundary = tenon.torch.Boundary(channel, hidden=HIDDEN, max_rows=ROWS[-1], eps=EPS, **spec)
    torch.manual_seed(rank)
    partial = torch.randn(rows, HIDDEN, device="cuda").bfloat16()
    given = partial, torch.zeros_like(partial), torch.ones(HIDDEN, device="cuda").bfloat16()
    return boundary, given, dict(zip(("rows", "codes", "scales"), boundary.outputs_like(partial)))


def meet():
    torch.cuda.synchronize()
    dist.barrier()
    torch.cuda.synchronize()


def arms_of(rows):
    return [of_rows(rows), of_rows(rows, sharded_residual=True), of_rows(rows, want_rows=False)]


def times_of_arms(arms):
    return time_in_a_graph([lambda arm=arm, of=of, to=to: arm(*of, **to) for arm, of, to in arms])


def end(arms):
    communicator.health()
    for arm, _, _ in arms:
        arm.close()


def measure_graphs():
    say("rows     whole  sharded  fp8 alone, whole   µs a call")
    for rows in ROWS:
        arms = arms_of(rows)
        say("{:4d}  {:8.2f} {:8.2f} {:8.2f}".format(rows, *times_of_arms(arms)), "  ",
            *[arm.plan(rows).variant for arm, _, _ in arms])
        end(arms)


def measure():
    say(f"\nhidden {HIDDEN}, bf16; rows and fp8 with fp32 row scales formed; µs a call")
    say("graph: calls in a CUDA graph, timed as `tenon bench boundary --mode graph --iterations 512` does,")
    say("--spread-residual or not: the residual whole on every rank, sharded by owner as in an engine that has")
    say("boundaries only, and whole with fp8 alone formed; torch: all_reduce, then residual, norm and quantiser. host: a")
    say("function of torch.compile, which holds the call alone")
    say("rows   graph: tenon  sharded  fp8 alone   torch compiled  torch eager   host: compiled   variants")
    fused = epilogue
    try:
        fused = torch.compile(epilogue, dynamic=False)
        fused(*[torch.zeros(2, HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(2)],
              torch.zeros(HIDDEN, dtype=torch.bfloat16, device="cuda"))
    except Exception as error:
        say(f"torch.compile of the three kernels: {str(error).splitlines()[0]}")
        fused = None
    for rows in ROWS:
        arms = arms_of(rows)
        boundary, given, places = arms[0]
        _, residual, weight = given
        addend = given[0].clone()

        def chain(tail):
            dist.all_reduce(addend)
            tail(addend, residual, weight)

        found = times_of_arms(arms)
        chains = [lambda tail=tail: chain(tail) for tail in (fused, epilogue) if tail]
        found += [float("nan")] * (2 - len(chains)) + time_in_a_graph(chains, 64)
        torch._dynamo.reset()
        compiled = torch.compile(lambda p, r: boundary(p, r, weight, **places).rows, fullgraph=True,
                                 backend="inductor" if fused else "aot_eager")
        with torch.no_grad():
            compiled(*given[:2])
            cores = on_own_core(rank, world)
            found += [median for median, _ in times_of([lambda: compiled(*given[:2])], meet)]
            os.sched_setaffinity(0, cores)
        say("{:4d}  {:12.2f} {:8.2f} {:10.2f} {:16.2f} {:12.2f} {:16.2f}".format(rows, *found), "  ",
            *[arm.plan(rows).variant for arm, _, _ in arms])
        end(arms)


os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("MASTER_PORT", "29511")
torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
dist.init_process_group("nccl", rank=int(os.environ.get("RANK", "0")),
                        world_size=int(os.environ.get("WORLD_SIZE", "1")),
                        device_id=torch.device("cuda", torch.cuda.current_device()))
rank, world = dist.get_rank(), dist.get_world_size()
communicator = tenon.torch.communicator(target="cuda", deadline=20.0)
say(f"tenon {tenon.__version__} {tenon.commit()}, torch {torch.__version__}, {world} x {torch.cuda.get_device_name()},",
    f"transport {communicator.info.transport}, capturable {communicator.info.capturable}")
times_alone = "--times" in sys.argv or "--graphs" in sys.argv
if not times_alone:
    check_bits()
every = [None] * world
dist.all_gather_object(every, failures)
wrong = [text for each in every for text in each]
if not times_alone:
    say("bits: eager, in a graph, compiled:", "all those of the reference" if not wrong else "\n".join(wrong))
if not wrong and "--bits" not in sys.argv:
    measure_graphs() if "--graphs" in sys.argv else measure()
communicator.close()
dist.destroy_process_group()
sys.exit(1 if wrong else 0)
