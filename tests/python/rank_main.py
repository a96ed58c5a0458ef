"""One rank that a launcher would start: runs a boundary over its inputs and compares every bit."""
import sys

import numpy as np
import tenon

from support import make_inputs, normalized, quantized, summed_residual

ROWS, HIDDEN = 5, 512

with tenon.Communicator.from_environment(target="cpu", transport="shm", deadline=20.0) as communicator:
    with tenon.Boundary(communicator, hidden=HIDDEN, max_rows=8, offset=1.0) as boundary:
        partial, residual, weight = make_inputs(communicator.rank, ROWS, HIDDEN)
        out = boundary(partial, residual, weight)
        expected = summed_residual(communicator.num_ranks, ROWS, HIDDEN)
        norm = normalized(expected, weight, 1e-6, 1.0)
        codes, scales = quantized(norm, 128)
        assert np.array_equal(out.residual, expected), "residual"
        assert np.array_equal(out.rows, norm), "rows"
        assert np.array_equal(out.codes, codes), "codes"
        assert np.array_equal(out.scales.view(np.uint32), scales.view(np.uint32)), "scales"
        assert sum(boundary.counts) == 1, boundary.counts
print("equal", sys.version_info[0])
