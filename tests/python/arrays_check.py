"""Arrays of CuPy and JAX on GPUs, judged by the reference bit by bit. One rank, or several of a host:

    torchrun --nproc-per-node 2 tests/python/arrays_check.py

PYTHONPATH and ORACLE_LIBRARY as for cuda_check.py. What cannot be imported is left out and named. Exits with 1 where a
bit differs.
"""
import os
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX takes most of a GPU otherwise

import cupy  # noqa: E402
import tenon  # noqa: E402

from oracle import LAYOUTS, case, difference, inputs, spec  # noqa: E402

wrong = []


def judge(what, shape, out):
    cupy.cuda.Device().synchronize()
    communicator.health()
    why = difference(shape, tenon.Outputs(*[each.get() for each in out]))
    if why:
        wrong.append(f"rank {communicator.rank}: {what}, {LAYOUTS[shape.layout]}: {why}")


def places_of(boundary, partial):
    return dict(zip(("rows", "codes", "scales"), boundary.outputs_like(partial)))


def check_cupy(boundary, shape):
    partial, residual, weight = [cupy.asarray(bits) for bits in inputs(shape, communicator.rank)]
    judge("arrays of CuPy", shape, boundary(partial, residual.copy(), weight))

    side = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with side:  # whose work on it is in order with the call's
        kept = residual.copy()
        out = boundary(partial + cupy.uint16(0), kept, weight)
    judge("arrays of CuPy on a stream", shape, out)

    places = places_of(boundary, partial)
    with side:
        side.begin_capture()
        kept[...] = residual
        boundary(partial, kept, weight, **places)
        graph = side.end_capture()
        for _ in range(3):
            places["codes"].fill(0)
            graph.launch(side)
    judge("arrays of CuPy in a graph", shape, tenon.Outputs(kept, **places))


def check_jax(jax, boundary, shape):
    device = jax.local_devices()[communicator.info.device]
    bits = inputs(shape, communicator.rank)
    # What these are computed from is large, so that they are not there yet when the call is made.
    later = jax.jit(lambda bits, large: jax.lax.bitcast_convert_type(
        bits + (large @ large)[0, 0].astype("uint16"), jax.numpy.bfloat16))
    large = jax.device_put(jax.numpy.zeros((4096, 4096), "float32"), device)
    partial, weight = later(jax.device_put(bits[0], device), large), later(jax.device_put(bits[2], device), large)
    residual = cupy.asarray(bits[1])
    places = places_of(boundary, residual)
    judge("addend and weight of JAX", shape, boundary(partial, residual, weight, **places))


communicator = tenon.Communicator.from_environment(target="cuda", deadline=20.0)
cupy.cuda.Device(communicator.info.device).use()
checked = [f"CuPy {cupy.__version__}"]
try:
    import jax
    if jax.default_backend() != "gpu":
        raise ImportError("no GPU")
    checked.append(f"JAX {jax.__version__}")
except (ImportError, RuntimeError) as why:
    print(f"JAX is left out: {why}")
    jax = None
for layout in LAYOUTS:
    shape = case(5, 512, communicator.num_ranks, layout=layout, offset=1.0)
    boundary = tenon.Boundary(communicator, max_rows=8, **spec(shape))
    check_cupy(boundary, shape)
    if jax is not None:
        check_jax(jax, boundary, shape)
given = [cupy.asarray(bits) for bits in inputs(shape, communicator.rank)]
places = places_of(boundary, given[0])
for _ in range(2):
    cupy.cuda.Device().synchronize()
    communicator.barrier()
    start = time.perf_counter()
    for _ in range(500):
        boundary(*given, **places)
    cost = (time.perf_counter() - start) / 500 * 1e6
cupy.cuda.Device().synchronize()
communicator.health()
print(*(wrong or [f"rank {communicator.rank}: {' and '.join(checked)}: every bit is the reference's; "
                  f"{cost:.2f} us of the host a call with arrays of CuPy"]), sep="\n")
sys.exit(1 if wrong else 0)
