#!/usr/bin/env python3
"""Debian packages are what they should be: check_packages.py FOLDER [--root EMPTY_FOLDER].

Looks at the three packages in FOLDER with dpkg-deb and lintian: their files, what they depend on, that nothing
in them names the folder of the source. Tags of lintian fail, but for those that deploy/debian/lintian-overrides
explains. With --root (as root, minutes): a Debian 12 without anything is put there by debootstrap, the packages
are installed into it, and `tenon env` and the example in C run there.
"""
import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERSION = re.search(r"project\(tenon VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
ABI = re.search(r"#define TENON_ABI (\d+)", (ROOT / "bindings/c/tenon.h").read_text()).group(1)
LIBRARY = f"libtenon{ABI}"
DEBIAN = "bookworm"

# Per package: all its files but documents, as patterns that each match one, or at least one where marked +.
FILES = {
    LIBRARY: [rf"usr/lib/[\w-]+/libtenon\.so\.{ABI}", rf"usr/lib/[\w-]+/libtenon\.so\.{ABI}\.{re.escape(VERSION)}"],
    "libtenon-dev": [r"usr/include/tenon\.h", r"+usr/include/tenon/[\w/]+\.(h|def|cuh)",
                     r"usr/lib/[\w-]+/libtenon\.so", r"+usr/lib/[\w-]+/libtenon_\w+\.a",
                     r"usr/lib/[\w-]+/pkgconfig/tenon\.pc", r"+usr/lib/[\w-]+/cmake/tenon/[\w-]+\.cmake"],
    "tenon": [r"usr/bin/tenon", r"usr/share/man/man1/tenon\.1\.gz", r"usr/share/bash-completion/completions/tenon"],
}
DOCUMENTS = r"usr/share/(doc/{0}/(copyright|changelog\.gz)|lintian/overrides/{0})"
DEPENDS = {
    LIBRARY: {"libc6", "libgcc-s1", "libssl3", "libstdc++6"},
    "libtenon-dev": {LIBRARY, "libssl-dev", "libpcre2-dev", "libutf8proc-dev"},
    "tenon": {"libc6", "libgcc-s1", "libssl3", "libstdc++6", "libpcre2-8-0", "libutf8proc2"},
}


def run(*command, **options):
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if found.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {found.stdout}{found.stderr}")
    return found.stdout


def check_package(name, path, complain):
    fields = dict(line.split(": ", 1) for line in run("dpkg-deb", "-f", path).splitlines()
                  if re.match(r"[\w-]+: ", line))
    if fields["Version"] != VERSION:
        complain(f"{name} has version {fields['Version']}; the source has {VERSION}")
    depends = {re.split(r"[ (|]", each.strip())[0] for each in fields.get("Depends", "").split(",")}
    if depends != DEPENDS[name]:
        complain(f"{name} depends on {sorted(depends)}; expected {sorted(DEPENDS[name])}")
    with tempfile.TemporaryDirectory() as scratch:
        run("dpkg-deb", "-x", path, scratch)
        files = sorted(each for each in pathlib.Path(scratch).rglob("*") if not each.is_dir() or each.is_symlink())
        names = [each.relative_to(scratch).as_posix() for each in files]
        rest = [each for each in names if not re.fullmatch(DOCUMENTS.format(name), each)]
        if len(names) - len(rest) != 3:
            complain(f"{name} has {len(names) - len(rest)} of its 3 documents")
        for pattern in FILES[name]:
            matching = [each for each in rest if re.fullmatch(pattern.lstrip("+"), each)]
            if not matching or (len(matching) > 1 and not pattern.startswith("+")):
                complain(f"{name} has {len(matching)} files that match {pattern}")
            rest = [each for each in rest if each not in matching]
        for each in rest:
            complain(f"{name} has {each}, which nothing asks for")
        here = str(ROOT).encode()
        for each in files:
            if not each.is_symlink() and here in each.read_bytes():
                complain(f"{name}: {each.relative_to(scratch)} names {ROOT}")


def check_lintian(packages, complain):
    if shutil.which("lintian") is None:
        complain("lintian is not here: apt-get install lintian")
        return
    found = subprocess.run(["lintian", "--allow-root", "--fail-on", "none", *map(str, packages)],
                           capture_output=True, text=True)
    if found.returncode != 0:
        complain(f"lintian ended with {found.returncode}: {found.stderr}")
    for line in found.stdout.splitlines():
        if re.match(r"[EW]: ", line):
            complain(f"lintian: {line}")


def check_install(packages, root):
    if root.exists() and any(root.iterdir()):
        sys.exit(f"{root} is not empty")
    run("debootstrap", "--variant=minbase", DEBIAN, root, "http://deb.debian.org/debian")
    inside = root / "packages"
    inside.mkdir()
    for each in packages:
        shutil.copy(each, inside)
    shutil.copy(ROOT / "examples/04_c/boundary.c", inside)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}

    def chroot(line):
        return run("chroot", root, "sh", "-ec", line, env=environment)

    chroot("apt-get install -y -qq --no-install-recommends /packages/libtenon1_*.deb /packages/tenon_*.deb")
    told = chroot("tenon --version && tenon env")
    print(told)
    if f"tenon {VERSION}\n" not in told:
        sys.exit(f"tenon --version does not say {VERSION}")
    chroot("apt-get install -y -qq --no-install-recommends gcc libc6-dev pkg-config /packages/libtenon-dev_*.deb")
    told = chroot("cc -std=c99 -Wall -Werror /packages/boundary.c $(pkg-config --cflags --libs tenon) -lpthread "
                  "-o /packages/boundary && /packages/boundary")
    if told != "ok\nok\n":
        sys.exit(f"the example in C printed {told!r}")
    chroot("apt-get remove -y -qq libtenon1 tenon")
    if list(root.glob("usr/lib/*/libtenon*")):
        sys.exit("libtenon stays behind when its package is removed")
    print("installed, ran, removed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--root", type=pathlib.Path)
    asked = parser.parse_args()
    complaints = []
    packages = []
    for name in FILES:
        found = sorted(asked.folder.glob(f"{name}_{VERSION}_*.deb"))
        if len(found) != 1:
            sys.exit(f"{asked.folder} has {len(found)} packages {name} of version {VERSION}; expected 1")
        packages += found
        check_package(name, found[0], complaints.append)
    check_lintian(packages, complaints.append)
    for each in complaints:
        print(each)
    print(f"{len(packages)} packages, {len(complaints)} violations")
    if complaints:
        return 1
    if asked.root:
        check_install(packages, asked.root.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
