"""One rank that a launcher started: runs boundaries over NumPy's arrays and lets the reference judge every bit."""
import sys

import tenon

from oracle import LAYOUTS, case, difference, inputs, spec

with tenon.Communicator.from_environment(target="cpu", transport="shm", deadline=60.0) as communicator:
    for layout in LAYOUTS:
        for rows, fresh in ((5, False), (8, True)):
            shape = case(rows, 512, communicator.num_ranks, layout=layout, offset=1.0, fresh_residual=fresh)
            with tenon.Boundary(communicator, max_rows=8, **spec(shape)) as boundary:
                out = boundary(*inputs(shape, communicator.rank))
                assert difference(shape, out) == "", difference(shape, out)
                assert sum(boundary.counts) == 1, boundary.counts
                partial, residual, weight = inputs(shape, communicator.rank)
                kept, places = residual.copy(), boundary.outputs_like(partial)
                run = boundary.bind(partial, kept, weight, **dict(zip(("rows", "codes", "scales"), places)))
                for again in (lambda: run(), lambda: run(None), lambda: run(0)):
                    kept[:] = residual
                    for place in places:
                        place[:] = 0x55
                    again()
                    bound = tenon.Outputs(kept, *places)
                    assert difference(shape, bound) == "", difference(shape, bound)
                assert sum(boundary.counts) == 4, boundary.counts
print("equal", sys.version_info[0])
