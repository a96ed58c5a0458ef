#!/usr/bin/env python3
"""Include police: who may include whom, how long files may be. Runs as the test policy.layers.

The rules are docs/house.md, section "Floors". Prints every violation and exits 1 if there is one.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)
MAX_LINES = 700

FLOORS = ["core", "text", "reference", "device", "comm", "ops", "boundary", "layers", "models", "runtime",
          "serve"]
# Floors that skip some of what lies below them; the others may include every floor below.
ONLY = {
    "reference": {"core", "reference"},
    "device": {"core", "device"},
    "comm": {"core", "device", "comm"},
    "ops": {"core", "device", "comm", "ops"},
    "boundary": {"core", "device", "comm", "ops", "boundary"},
    "layers": {"core", "device", "comm", "ops", "boundary", "layers"},
    "models": {"core", "device", "comm", "ops", "boundary", "layers", "models"},
    "runtime": {"core", "device", "comm", "ops", "boundary", "layers", "models", "runtime"},
    "serve": {"core", "text", "runtime", "serve"},
}
# What a floor may see of another that it otherwise may not, or may see only in part.
RUNTIME_OPS = re.compile(r"tenon/ops/(sampling/|registry\.h)")
MODELS_OPS = "tenon/ops/make_weights/"
RUNTIME_MODELS = "tenon/models/model.h"
RUNTIME_LAYERS = re.compile(r"tenon/layers/(caches\.h|step\.h|step_fields\.def)")
RUNTIME_BOUNDARY = "tenon/boundary/boundary.h"
# The shared library for C is the boundary and what lies below it, without the ops.
C_FLOORS = {"core", "device", "comm", "boundary"}
SERVE_RUNTIME = "tenon/runtime/engine.h"
# The boundary is a product of its own: of the ops it links these alone.
BOUNDARY_OPS = re.compile(r"tenon/ops/(common|fused_allreduce_rmsnorm_quant|rmsnorm)/")
# A thread of its own kind has the process's stack size, no name, and throws when there is none.
PLAIN_THREAD = re.compile(r"\bstd::(jthread|async|thread)\b(?!::)|\bpthread_create\b")
THREAD_HOME = "tenon/core/thread.cc"
DEVICE_HEADERS = re.compile(
    r"tenon/(core/[a-z0-9_]+\.h|device/([a-z_]+/(sm90/)?)?[a-z0-9_]+\.(h|cuh)|comm/device/[a-z_]+\.(h|cuh)|comm/collectives/[a-z_]+\.cuh|ops/common/(segments\.h|[a-z0-9_]+\.cuh))$")
VENDOR = re.compile(r"^(cuda|hip|nccl\.h|mpi\.h|rccl)")
VENDOR_HOMES = ("tenon/device/cuda_hip/", "tenon/comm/transport/", "tenon/comm/bootstrap/")
# Who may ask which compiler reads the file. Elsewhere what devices run is chosen by kWave, so that tests on
# emulated targets run the same.
VENDOR_MACRO = re.compile(r"^\s*#\s*(?:el)?if.*(__CUDACC__|__HIP__|__CUDA_ARCH__|__HIP_DEVICE_COMPILE__)", re.M)
VENDOR_MACRO_HOMES = ("tenon/core/dtype.h", "tenon/device/", "tenon/ops/common/row.cuh")
# Kernels of tests lie in the namespace of their target, or in one that the test names (kernels.inc).
SUPPORT_SPACES = ("tenon::test", "tenon::TENON_TARGET", "tenon::TENON_TEST_SPACE")
NAMESPACE = re.compile(r"^namespace (tenon[\w:]*) \{", re.MULTILINE)
# Instructions of one architecture have one home each; kernels call what stands there.
SM90 = re.compile(r'"[^"\n]*(?:\b|\\[nt])(mbarrier\.(?!cuh)|wgmma\.(?!cuh)|cp\.async\.bulk|barrier\.cluster|st\.async|mapa\.)')
SM90_HOME = "tenon/device/cuda_hip/sm90/"
LIBRARIES = {  # third-party headers and the only places that may name them
    "nlohmann/": ("tenon/core/json.", "tenon/text/", "tenon/models/", "apps/", "tests/"),
    "CLI/": ("apps/",),
    "boost/": ("apps/server/", "tenon/text/jinja/integer."),
    "pcre2": ("tenon/text/",),
    "utf8proc": ("tenon/text/",),
    "xgrammar/": ("tenon/text/grammar.cc",),
    "dlpack/": ("tenon/text/grammar.cc",),
    "openssl/": ("tenon/comm/bootstrap/",),
}


def floor_of(path):
    parts = path.split("/")
    return parts[1] if parts[0] == "tenon" and len(parts) > 2 else None


def check_tenon_include(path, target):
    """One include of our own header from a file under tenon/; returns a complaint or None."""
    mine, theirs = floor_of(path), floor_of(target)
    if theirs not in FLOORS:
        return f"includes {target}, which lies on no floor"
    if path.endswith(".cuh") or path.endswith(".cu"):
        folder = path.rsplit("/", 1)[0] + "/"
        allowed = DEVICE_HEADERS.match(target) or target.startswith(folder)
        return None if allowed else f"is device code and may not include {target}"
    if FLOORS.index(theirs) > FLOORS.index(mine):
        return f"includes {target}, which lies on a floor above"
    if theirs == mine == "ops":
        own, other = path.split("/")[2], target.split("/")[2]
        if own != other and other != "common" and not own.startswith("registry."):
            return f"includes {target}: an op never includes another op"
    if mine in ONLY and theirs not in ONLY[mine]:
        return f"includes {target}: {mine} may not see {theirs}"
    if mine == "runtime":
        if theirs == "ops" and not RUNTIME_OPS.match(target):
            return f"includes {target}: the runtime may see sampling only"
        if theirs == "models" and target != RUNTIME_MODELS:
            return f"includes {target}: the runtime may see models/model.h only"
        if theirs == "layers" and not RUNTIME_LAYERS.match(target):
            return f"includes {target}: the runtime may see layers/caches.h, step.h and step_fields.def only"
        if theirs == "boundary" and target != RUNTIME_BOUNDARY:
            return f"includes {target}: the runtime may see boundary/boundary.h only"
    if mine == "models" and theirs == "ops" and not target.startswith(MODELS_OPS):
        return f"includes {target}: the models may see make_weights only"
    if mine == "boundary" and theirs == "ops" and not BOUNDARY_OPS.match(target):
        return f"includes {target}: the boundary may see its own ops only"
    if mine == "serve" and theirs == "runtime" and target != SERVE_RUNTIME:
        return f"includes {target}: serve may see runtime/engine.h only"
    return None


def check_file(path, text):
    complaints = []
    lines = text.count("\n")
    if lines > MAX_LINES:
        complaints.append(f"has {lines} lines; the limit is {MAX_LINES}")
    macro = VENDOR_MACRO.search(text)
    if macro and path.startswith("tenon/") and not path.startswith(VENDOR_MACRO_HOMES):
        complaints.append(f"asks for {macro.group(1)}; only {', '.join(VENDOR_MACRO_HOMES)} may")
    instruction = SM90.search(text)
    if instruction and not path.startswith(SM90_HOME):
        complaints.append(f"has the instruction {instruction.group(1)}; only {SM90_HOME} may")
    if path.startswith(("tenon/", "apps/")) and path != THREAD_HOME and PLAIN_THREAD.search(text):
        complaints.append("starts a thread by itself; start_thread (tenon/core/thread.h) does")
    if path.startswith("tests/") and "SetUpTestSuite" in text:
        complaints.append("has a SetUpTestSuite; where one fails ctest counts its tests as skipped, so use SetUp")
    if path.startswith("tests/support/"):
        for space in NAMESPACE.findall(text):
            if space not in SUPPORT_SPACES:
                complaints.append(f"opens namespace {space}; tests/support has {', '.join(SUPPORT_SPACES)}")
    for kind, target in INCLUDE.findall(text):
        if kind == '"':
            if target.startswith("tests/") and not path.startswith("tests/"):
                complaints.append(f"includes {target}; only tests may")
            elif not target.startswith(("tenon/", "tests/", "apps/", "bindings/")):
                complaints.append(f'includes "{target}", which is not written from the root')
            elif path.startswith("bindings/c/"):
                if floor_of(target) not in C_FLOORS and not target.startswith("bindings/c/"):
                    complaints.append(f"includes {target}; bindings/c may see {', '.join(sorted(C_FLOORS))} only")
            elif path.startswith("tenon/"):
                if not target.startswith("tenon/"):
                    complaints.append(f"includes {target}, which lies outside tenon/")
                else:
                    problem = check_tenon_include(path, target)
                    if problem:
                        complaints.append(problem)
        if VENDOR.match(target) and not path.startswith(VENDOR_HOMES):
            complaints.append(f"names <{target}>; only {', '.join(VENDOR_HOMES)} may")
        for prefix, homes in LIBRARIES.items():
            if target.startswith(prefix) and not path.startswith(homes):
                complaints.append(f"names <{target}>; only {', '.join(homes)} may")
    return complaints


def main():
    files = sorted(p for top in ("tenon", "apps", "bindings", "tests", "fuzz") for p in (ROOT / top).rglob("*")
                   if p.suffix in (".h", ".cc", ".cu", ".cuh", ".c"))
    bad = 0
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        for complaint in check_file(path, file.read_text()):
            print(f"{path} {complaint}")
            bad += 1
    print(f"{len(files)} files, {bad} violations")
    return 1 if bad or not files else 0


if __name__ == "__main__":
    sys.exit(main())
