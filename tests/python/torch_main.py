"""One rank that a launcher started: tensors of torch, eager and compiled, judged by the reference."""
import sys

import tenon
import tenon.torch
import torch

from oracle import LAYOUTS, case, difference, inputs, spec


def tensors(shape, rank):
    return [torch.from_numpy(bits).view(torch.bfloat16) for bits in inputs(shape, rank)]


class Site(torch.nn.Module):
    def __init__(self, boundary, weight):
        super().__init__()
        self.boundary, self.weight = boundary, torch.nn.Parameter(weight)

    def forward(self, partial, residual):
        out = self.boundary(partial * 1, residual, self.weight)
        return out.residual, out.rows * 1, out.codes, out.scales


torch.distributed.init_process_group("gloo")
with tenon.torch.communicator(target="cpu", transport="shm", deadline=60.0) as communicator:
    for layout in LAYOUTS:
        shape = case(5, 512, communicator.num_ranks, layout=layout, offset=1.0)
        with tenon.torch.Boundary(communicator, max_rows=8, **spec(shape)) as boundary:
            partial, residual, weight = tensors(shape, communicator.rank)
            out = boundary(partial, residual.clone(), weight)
            assert difference(shape, out) == "", difference(shape, out)
            assert (out.rows.dtype, out.codes.dtype) == (torch.bfloat16, torch.float8_e4m3fn)
            kept, places = residual.clone(), boundary.outputs_like(partial)
            boundary.bind(partial, kept, weight, **dict(zip(("rows", "codes", "scales"), places)))()
            assert difference(shape, tenon.Outputs(kept, *places)) == "", "bound"
            torch._dynamo.reset()
            compiled = torch.compile(Site(boundary, weight), fullgraph=True, backend=sys.argv[1])
            with torch.no_grad():
                given = residual.clone()
                found = tenon.Outputs(*compiled(partial, given))
            assert difference(shape, found) == "", difference(shape, found)
            assert torch.equal(given.view(torch.int16), found.residual.view(torch.int16)), "the residual of the caller was not written"
            assert sum(boundary.counts) == 3, boundary.counts
torch.distributed.destroy_process_group()
print("equal")
