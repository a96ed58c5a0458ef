"""How tests of the Python package begin: with an environment that has what they need, and the package of the build
folder. They are called as NAME_test.py BUILD_FOLDER FOLDER_OF_ENVIRONMENTS."""
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/apps"))
from clients_support import enter  # noqa: E402

NUMPY = "numpy==1.26.4"
# One environment for all tests with torch: its packages take gigabytes.
TORCH = NUMPY, "torch==2.11.0", "mypy==2.4.1", "transformers==5.19.0", "msgspec==0.22.0", "pyzmq==27.3.0", "dill==0.4.1"


def enter_package(script, *packages, name="python"):
    """Goes on where `packages` and tenon can be imported, and removes the build folder from sys.argv."""
    build = pathlib.Path(sys.argv[1]).resolve()
    enter(script, *packages, name=name, environment={
        "PYTHONPATH": str(build / "python"), "PYTHONDONTWRITEBYTECODE": "1",
        "ORACLE_LIBRARY": str(build / "tests/libpython_oracle.so")})
    del sys.argv[1]


def launch(count, *command, timeout=120):
    """Starts `count` ranks of `command` as a launcher does; (exit code, what it printed) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
                           LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        started.append(subprocess.Popen([sys.executable, *map(str, command)], env=environment,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return [(process.returncode, told) for process, (told, _) in
            [(process, process.communicate(timeout=timeout)) for process in started]]
