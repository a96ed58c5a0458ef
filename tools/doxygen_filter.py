#!/usr/bin/env python3
"""What doxygen reads instead of a header: doxygen_filter.py HEADER. Comments of this house are plain //; here
those in front of something become /// and those behind it ///<, and what doxygen would take for commands of its
own is written so that it is shown as it stands. The comment at a header's head is that of the file."""
import re
import sys

ESCAPED = re.compile(r"[\\@<>&#%$]")


def shown(text):
    """Text as doxygen shows it; what stands in backticks is taken as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else ESCAPED.sub(lambda found: "\\" + found[0], part).replace("\"", "\\\"")
                   for part in parts)


def split(line):
    """(code, comment or None) of a line; a // inside a string is none."""
    at = 0
    while (at := line.find("//", at)) >= 0:
        if line[:at].count('"') % 2 == 0:
            return line[:at], line[at + 2:].strip()
        at += 2
    return line, None


def main():
    lines = open(sys.argv[1], encoding="utf-8").read().splitlines()
    out, at_head, behind = [], True, False
    for line in lines:
        code, comment = split(line)
        if comment is None or re.match(r"(clang-format (on|off)|namespace |-{3})", comment) or comment.endswith("---"):
            at_head = at_head and not code.strip()
            behind = False
            out.append(code if comment is not None else line)
        elif code.strip():
            behind = True
            out.append(f"{code}///< {shown(comment)}")
        elif behind and len(code) > 20:  # goes on behind what it is about
            out.append(f"{code}///< {shown(comment)}")
        else:
            behind = False
            if at_head and not out:
                out.append(f"{code}/// \\file")
            out.append(f"{code}/// {shown(comment)}")
    print("\n".join(out))


if __name__ == "__main__":
    main()
