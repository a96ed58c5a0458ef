"""Clients from PyPI for tests of the server, each set in a virtual environment of its own.

A test of them is called as NAME_test.py TENON [FOLDER] and begins with enter(). CI need not reach PyPI:
where the packages cannot be installed, the test says so and is skipped.
"""
import pathlib
import subprocess
import sys
import venv

CODE_OF_SKIP = 77


def enter(script, *packages):
    """Goes on with a Python that has `packages` ("NAME==VERSION"), which lie in FOLDER/NAME_OF_SCRIPT."""
    if "--inside" in sys.argv:
        sys.argv.remove("--inside")
        return
    name = pathlib.Path(script).stem.removesuffix("_test")
    base = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build/clients").resolve()
    folder = base / name
    python, done = folder / "bin/python", folder / "done"
    wanted = "\n".join(packages)
    if not done.exists() or done.read_text() != wanted:
        try:
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                            "--timeout", "10", "--retries", "1", *packages], check=True, timeout=900)
        except (OSError, subprocess.SubprocessError) as why:
            print(f"skipped: {', '.join(packages)} could not be installed from PyPI ({why})")
            sys.exit(CODE_OF_SKIP)
        done.write_text(wanted)
    found = subprocess.run([python, str(pathlib.Path(script).resolve()), sys.argv[1], "--inside"],
                           check=False)
    sys.exit(found.returncode)
