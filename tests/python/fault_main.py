"""Processes in which something goes wrong, for faults_test.py: fault_main.py HOW."""
import os
import pathlib
import signal
import sys
import threading
import time
import types

import numpy as np
import tenon

U16 = np.uint16


def communicator_of_launcher():
    return tenon.Communicator.from_environment(target="cpu", transport="shm", deadline=60.0)


def differ():
    communicator = communicator_of_launcher()
    try:
        tenon.Boundary(communicator, hidden=256 * (1 + communicator.rank), max_rows=4)
        sys.exit("boundaries of different widths were made")
    except tenon.InvalidArgumentError as error:
        print(error)
    boundary = tenon.Boundary(communicator, hidden=256, max_rows=4)
    boundary(np.zeros((1, 256), U16), np.zeros((1, 256), U16), np.zeros(256, U16))


def differ_in_rows():
    communicator = communicator_of_launcher()
    boundary = tenon.Boundary(communicator, hidden=256, max_rows=4)
    rows = 2 + communicator.rank
    try:
        boundary(np.zeros((rows, 256), U16), np.zeros((rows, 256), U16), np.zeros(256, U16))
        communicator.barrier()
        sys.exit("ranks with different rows gave something")
    except tenon.Error as error:
        print(f"{type(error).__name__}: {error}")


def killed():
    communicator = communicator_of_launcher()
    boundary = tenon.Boundary(communicator, hidden=256, max_rows=4)
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        boundary(np.zeros((1, 256), U16), np.zeros((1, 256), U16), np.zeros(256, U16))
        sys.exit("a boundary without its other rank gave something")
    except (tenon.PeerLostError, tenon.DeadlineError) as error:
        print(f"{type(error).__name__}: {error}")


def wait_in_a_thread(deadline):
    def wait(team):
        try:
            tenon.Communicator.from_team(team, 0, target="cpu", deadline=deadline)
        except tenon.Error:
            pass

    team = tenon.Team(2)
    threading.Thread(target=wait, args=(team,), daemon=True).start()
    time.sleep(0.2)  # until it waits
    return team


class Slow:
    """Goes away slowly, after the interpreter has begun to end."""

    def __del__(self, sleep=time.sleep):
        sleep(1.5)


def exit_while_waiting():
    global kept
    kept = wait_in_a_thread(300.0)


def exit_while_calling():
    global kept
    team, kept = tenon.Team(2), []

    def call(rank):
        communicator = tenon.Communicator.from_team(team, rank, target="cpu", deadline=300.0)
        boundary = tenon.Boundary(communicator, hidden=256, max_rows=4)
        kept.append(boundary)
        if rank == 0:
            boundary(np.zeros((1, 256), U16), np.zeros((1, 256), U16), np.zeros(256, U16))

    for rank in range(2):
        threading.Thread(target=call, args=(rank,), daemon=True).start()
    while len(kept) < 2:
        time.sleep(0.01)
    time.sleep(0.3)  # until it waits


def exit_at_the_deadline():
    global kept
    kept = wait_in_a_thread(0.8)
    last = types.ModuleType("last")  # modules are cleared when the interpreter is about to be gone
    last.slow = Slow()
    sys.modules["last"] = last


def exit_while_answering():
    global engine, reply
    model = pathlib.Path(__file__).resolve().parent.parent.parent / "checkpoints/tiny"
    engine = tenon.Engine(model, target="cpu")
    reply = engine.submit("a", tenon.Sampling(max_tokens=4000, ignore_eos=True))
    read = iter(reply)
    next(read)
    threading.Thread(target=lambda: list(read), daemon=True).start()
    time.sleep(0.2)


globals()[sys.argv[1]]()
if sys.argv[1].startswith("exit"):
    print("left")
