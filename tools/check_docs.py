#!/usr/bin/env python3
"""Docs say what is true. Runs as the test policy.docs.

1. Every relative link and every path in backticks that looks like a file of the tree exists; NAME in
   a path stands for whatever the reader adds.
2. A fenced block that follows `<!-- from PATH: MARK -->` equals the lines of PATH between the
   comments `[MARK]` and `[/MARK]`.
3. Every `./x verb` that a document names is a verb of ./x.
4. Every file, function() and Type::member that a comment of the code names exists.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:tenon|apps|tests|fuzz|tools|docs|checkpoints|baselines|bindings|cmake|examples)/[\w./-]+)`")
FENCE = re.compile(r"^```.*?^```", re.S | re.M)
SNIPPET = re.compile(r"<!-- from (\S+): (\S+) -->\n```\w*\n(.*?)```", re.S)
VERB = re.compile(r"\./x ([a-z]+)")


NAMED_FILE = re.compile(r"(?<![\w./*<-])([\w/]+\.(?:h|cc|cuh?|def|md|py|cmake))\b(?!\()")
NAMED_CODE = re.compile(r"\b([a-zA-Z_]\w{2,})\(\)|\b[A-Z]\w+::(\w+)")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
CODE = (".h", ".cc", ".cu", ".cuh", ".def", ".inc")


def split(line):
    """(code, comment) of a line. A // inside a string would be taken for a comment: none is."""
    code, mark, comment = line.partition("//")
    if mark and code.count('"') % 2 == 1:
        return line, ""
    return code, comment


def check_comments(files):
    names = {path.name for path in files} | {path.relative_to(ROOT).as_posix() for path in files}
    tails = {"/".join(path.relative_to(ROOT).parts[i:]) for path in files
             for i in range(len(path.relative_to(ROOT).parts))} | names
    code = [path for path in files if path.suffix in CODE]
    lines = {path: [split(line) for line in path.read_text().splitlines()] for path in code}
    known = set()
    for each in lines.values():
        for text, _ in each:
            known.update(IDENTIFIER.findall(text))
    for path in files:  # what scripts define
        if path.suffix in (".py", ".cmake", ".txt"):
            known.update(IDENTIFIER.findall(path.read_text()))
    for path, each in lines.items():
        for number, (_, comment) in enumerate(each, 1):
            for name in NAMED_FILE.findall(comment):
                if name not in tails and "NAME" not in name and "built_" not in name:  # the build makes those
                    yield f"{path.relative_to(ROOT)}:{number} names {name}, which does not exist"
            for function, member in NAMED_CODE.findall(comment):
                if (function or member) not in known:
                    yield f"{path.relative_to(ROOT)}:{number} names {function or member}, which no code has"


def snippet_of(path, mark):
    lines = (ROOT / path).read_text().splitlines()
    inside = [i for i, line in enumerate(lines) if f"[{mark}]" in line or f"[/{mark}]" in line]
    if len(inside) != 2:
        return None
    return "\n".join(lines[inside[0] + 1:inside[1]]) + "\n"


def check(document, verbs):
    text = document.read_text()
    prose = FENCE.sub("", text)
    for target in LINK.findall(prose):
        if not (document.parent / target).exists():
            yield f"links to {target}, which does not exist"
    for target in PATH.findall(text):
        if "NAME" not in target and not (ROOT / target.rstrip("/.")).exists():
            yield f"names {target}, which does not exist"
    for path, mark, block in SNIPPET.findall(text):
        if snippet_of(path, mark) != block:
            yield f"shows a snippet that is not what {path} says at [{mark}]"
    for verb in VERB.findall(text):
        if verb not in verbs:
            yield f"names ./x {verb}, which is no verb"


def main():
    usage = re.search(r"cat <<'TEXT'\n(.*?)\nTEXT", (ROOT / "x").read_text(), re.S).group(1)
    verbs = set(VERB.findall(usage))
    documents = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")),
                 *sorted((ROOT / "checkpoints").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / "tools").rglob("*.md"))]
    bad = 0
    for document in documents:
        for complaint in check(document, verbs):
            print(f"{document.relative_to(ROOT)} {complaint}")
            bad += 1
    files = [path for top in ("tenon", "apps", "bindings", "tests", "fuzz", "docs", "tools", "cmake", "examples")
             for path in sorted((ROOT / top).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    for complaint in check_comments(files):
        print(complaint)
        bad += 1
    print(f"{len(documents)} documents, the comments of {len(files)} files, {bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
