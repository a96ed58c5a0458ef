#!/usr/bin/env python3
"""Writes docs/performance.md and its plots from the results in baselines/engine: performance.py [--check].

A result is what `tenon bench decode`, `prefill`, `ops` or `serve` or `tenon profile` wrote with --json-file. The page
says nothing that is not in them, but for notes: baselines/engine/NAME.md, if there is one, is put below the
tables of NAME.json. --check writes nothing and fails where the page is not what would be written.
"""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "baselines/engine"
PAGE = ROOT / "docs/performance.md"
HEAD = """# How fast the engine is

Written by `tools/performance.py` from the files in `baselines/engine`; how they are measured: [measure.md](measure.md). Every number is of the device, date, command and version beside it. Ratios between lines of one table come from one run, in turns; times of different tables do not compare to the last per cent.
"""
COLUMNS = {
    "decode": [("sequences", "sequences", 0), ("stages", "stages", None), ("step_ms", "ms per token", 3),
               ("tokens_per_s", "tokens/s", 0), ("floor_ms", "floor, ms", 3), ("percent_of_floor", "% of floor", 0),
               ("ratio", "x first", 3)],
    "prefill": [("prompts", "prompts", 0), ("tokens", "tokens each", 0), ("stages", "stages", None),
                ("first_token_ms", "ms to the last first token", 1), ("tokens_per_s", "tokens/s", 0),
                ("tflops", "TFLOP/s per rank", 0), ("ratio", "x first", 3)],
    "serve": [("concurrency", "at a time", 0), ("arm", "server", None), ("output_tokens_per_s", "tokens/s", 0),
              ("ttft_median_ms", "TTFT, ms", 0), ("ttft_p99_ms", "p99", 0), ("tpot_median_ms", "TPOT, ms", 2),
              ("tpot_p99_ms", "p99", 2), ("itl_p99_ms", "ITL p99, ms", 1), ("completed", "whole", 0),
              ("failed", "failed", 0)],
    "ops": [("part", "part", None), ("shape", "n x k", None), ("rows", "rows", 0), ("us", "µs", 2),
            ("gbs", "GB/s", 0), ("percent_of_copy", "% of a copy", 0), ("tflops", "TFLOP/s", 1)],
    "profile": [("stages", "stages", None), ("section", "part of the step", None), ("kernel", "kernel", None),
                ("launches", "launches", 0), ("us", "µs", 1), ("us_each", "µs each", 2),
                ("percent", "% of launches", 1)],
}


def kind_of(result):
    return next(kind for kind, columns in COLUMNS.items()
                if all(name in result["results"][0] for name, _, _ in columns))


def cell(row, name, digits):
    value = row[name]
    return str(value) if digits is None else f"{value:,.{digits}f}"


def table(result, columns):
    lines = ["| " + " | ".join(title for _, title, _ in columns) + " |", "|" + "---|" * len(columns)]
    for row in result["results"]:
        lines.append("| " + " | ".join(cell(row, name, digits) for name, _, digits in columns) + " |")
    return lines


def plot(result, title):
    """Bars of ms per token over the number of sequences, on a scale of powers of two; the floor as a line."""
    rows = result["results"]
    counts = list(dict.fromkeys(row["sequences"] for row in rows))
    stages = list(dict.fromkeys(row["stages"] for row in rows))
    most = max(row["step_ms"] for row in rows)
    width, height, left, bottom = 140 * len(counts) + 80, 260, 60, 40
    scale = (height - bottom - 40) / most
    colours = ["#1b6ca8", "#d98032", "#4a9c5d", "#8a5fb0"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           f'font-size="12"><title>{title}</title><rect width="100%" height="100%" fill="white"/>',
           f'<text x="{left}" y="18">{title}</text>']
    base = height - bottom
    for at, count in enumerate(counts):
        x = left + 140 * at
        of_count = [row for row in rows if row["sequences"] == count]
        for row in of_count:
            arm = stages.index(row["stages"])
            tall = row["step_ms"] * scale
            out.append(f'<rect x="{x + 45 * arm}" y="{base - tall:.1f}" width="40" height="{tall:.1f}" '
                       f'fill="{colours[arm % len(colours)]}"/><text x="{x + 45 * arm + 20}" y="{base - tall - 4:.1f}" '
                       f'text-anchor="middle">{row["step_ms"]:.2f}</text>')
        floor = base - of_count[0]["floor_ms"] * scale
        out.append(f'<line x1="{x - 5}" x2="{x + 45 * len(stages)}" y1="{floor:.1f}" y2="{floor:.1f}" stroke="black" '
                   'stroke-dasharray="4 3"/>')
        out.append(f'<text x="{x + 22 * len(stages)}" y="{base + 16}" text-anchor="middle">{count} '
                   f'sequence{"" if count == 1 else "s"}</text>')
    for arm, name in enumerate(stages):
        out.append(f'<rect x="{left + 110 * arm}" y="{height - 16}" width="10" height="10" '
                   f'fill="{colours[arm % len(colours)]}"/><text x="{left + 110 * arm + 14}" y="{height - 7}">'
                   f'stages {name}</text>')
    out.append(f'<text x="{left + 110 * len(stages)}" y="{height - 7}">dashed: floor</text></svg>')
    return "\n".join(out) + "\n"


def served(result, path):
    """A load on servers. Where they ran is known to the notes alone: the client does not see it."""
    load = result["load"]
    model = pathlib.PurePath(result["model"]).name
    lines = [f'## {model}, served, {load["input_tokens"]:,} tokens in and {load["output_tokens"]:,} out', "",
             f'{load["num_prompts"]} requests; {result["date"][:10]}, version {result["version"]}. '
             f'`{result["command"]}`', ""]
    return lines + table(result, COLUMNS["serve"]) + ["", path.with_suffix(".md").read_text().strip(), ""]


def overview(results):
    """A line for every decode table: what most readers look for."""
    lines = ["## Decode at a glance", "", "Fused wherever the plans allow it (`auto`), ms per token; details below.", "",
             "| model | ranks | context | 1 sequence | 16 | 64 |", "|---|---|---|---|---|---|"]
    for result in results:
        if kind_of(result) != "decode":
            continue
        ms = {row["sequences"]: row["step_ms"] for row in result["results"] if row["stages"] == "auto"}
        lines.append(f'| {result["model"]} | {result["ranks"]} x {result["device"]} | {result["context"]:,} | ' +
                     " | ".join(f"{ms[count]:.3f}" if count in ms else "–" for count in (1, 16, 64)) + " |")
    return lines + [""]


def files():
    """Path and text of all that there is to write."""
    all_results = {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    found, page = {}, [HEAD, *overview(all_results.values())]
    for path, result in all_results.items():
        kind = kind_of(result)
        if kind == "serve":
            page += served(result, path)
            continue
        ranks = f'{result["ranks"]} rank' + ("" if result["ranks"] == 1 else "s")
        title = f'{result["model"]}, {kind}, {ranks} of {result["device"]}'
        page += [f"## {title}", ""]
        about = f'{result["weights"]} weights' if "weights" in result else "one rank's share, made weights"
        if "context" in result:
            about += f', {result["context"]:,} tokens of context'
        page += [f'{about}; {result["date"][:10]}, version {result["version"]}; a copy in device memory: '
                 f'{result["memory_gbs"]:,.0f} GB/s. `{result["command"]}`', ""]
        page += table(result, COLUMNS[kind]) + [""]
        if kind == "decode":
            picture = PAGE.parent / "performance" / (path.stem + ".svg")
            found[picture] = plot(result, title)
            page += [f"![{title}](performance/{picture.name})", ""]
        notes = path.with_suffix(".md")
        if notes.exists():
            page += [notes.read_text().strip(), ""]
    found[PAGE] = "\n".join(page).rstrip() + "\n"
    return found


def main():
    wrong = 0
    for path, text in files().items():
        if sys.argv[1:] == ["--check"]:
            if not path.exists() or path.read_text() != text:
                print(f"{path.relative_to(ROOT)} is not what tools/performance.py writes")
                wrong += 1
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
