#!/usr/bin/env python3
"""Docs say what is true. Runs as the test policy.docs.

1. Every relative link and every path in backticks that looks like a file of the tree exists; NAME in
   a path stands for whatever the reader adds.
2. A fenced block that follows `<!-- from PATH: MARK -->` equals the lines of PATH between the
   comments `[MARK]` and `[/MARK]`.
3. Every `./x verb` that a document names is a verb of ./x.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:tenon|apps|tests|fuzz|tools|docs|checkpoints|baselines|bindings|cmake|examples)/[\w./-]+)`")
SNIPPET = re.compile(r"<!-- from (\S+): (\S+) -->\n```\w*\n(.*?)```", re.S)
VERB = re.compile(r"\./x ([a-z]+)")


def snippet_of(path, mark):
    lines = (ROOT / path).read_text().splitlines()
    inside = [i for i, line in enumerate(lines) if f"[{mark}]" in line or f"[/{mark}]" in line]
    if len(inside) != 2:
        return None
    return "\n".join(lines[inside[0] + 1:inside[1]]) + "\n"


def check(document, verbs):
    text = document.read_text()
    for target in LINK.findall(text):
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
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")),
                 *sorted((ROOT / "checkpoints").rglob("*.md")), *sorted((ROOT / "tools").rglob("*.md"))]
    bad = 0
    for document in documents:
        for complaint in check(document, verbs):
            print(f"{document.relative_to(ROOT)} {complaint}")
            bad += 1
    print(f"{len(documents)} documents, {bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
