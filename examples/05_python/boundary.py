"""Two ranks, threads of this process, and one boundary between them."""
import threading

import numpy as np
import tenon

ROWS, HIDDEN = 2, 256
ONE = 0x3F80  # of bf16, which NumPy has not: uint16 that holds the bits


def rank_main(team, rank, told):
    with tenon.Communicator.from_team(team, rank, target="cpu") as communicator:
        boundary = tenon.Boundary(communicator, hidden=HIDDEN, max_rows=8)
        partial = np.full((ROWS, HIDDEN), ONE, np.uint16)
        residual = np.zeros((ROWS, HIDDEN), np.uint16)
        weight = np.full(HIDDEN, ONE, np.uint16)
        out = boundary(partial, residual, weight)
        told[rank] = (hex(out.residual[0, 0]), hex(out.rows[0, 0]), hex(out.codes[0, 0]))


told = [None, None]
team = tenon.Team(2)
ranks = [threading.Thread(target=rank_main, args=(team, rank, told)) for rank in range(2)]
for rank in ranks:
    rank.start()
for rank in ranks:
    rank.join()
print(told)
