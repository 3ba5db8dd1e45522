#!/usr/bin/env python3
"""Regenerates the figures of docs/accuracy.md, docs/accuracy-tables.md, docs/accuracy.svg and README.md.

usage: accuracy.py PROGRAM RUNS.csv

Runs `PROGRAM validate` three times: with the calibrations as shipped, and with constants that were fitted without the
source, and without the model, that they predict. Text between "<!-- accuracy: NAME -->" and "<!-- /accuracy -->" of a
page is replaced; the words around it stay.
"""
import pathlib
import re
import subprocess
import sys

TABLES = pathlib.Path("docs/accuracy-tables.md")
PAGES = [pathlib.Path(p) for p in ("docs/accuracy.md", "docs/cost-model.md", "README.md")]
CALIBRATIONS = pathlib.Path("src/cost/calibrations")
CHIPS = ["a100-sxm-80gb", "h100-sxm", "h100-sxm-hbm2e-500w", "b200-sxm", "b300-sxm"]
TARGETS = [("dense, A100 and H100", "5 %", "8 %"), ("MoE", "8 %", "12 %"), ("B200, GB200, GB300", "8 %", "12 %")]


def validate(program, runs, *flags):
    done = subprocess.run([program, "validate", runs, "--markdown", *flags], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def tables_of(markdown):
    """{title: (header, {first cell: cells})} of the tables of one run."""
    out = {}
    for part in markdown.split("### ")[1:]:
        lines = part.split("\n")
        cells = [[c.strip() for c in re.split(r"(?<!\\)\|", l)[1:-1]] for l in lines if l.startswith("|")]
        out[lines[0]] = (cells[0], {row[0]: row for row in cells[2:]})
    return out


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(tables, title, row, column):
    header, rows = tables[title]
    return rows[row][header.index(column)] if row in rows else "-"


def number(text):
    return float(text.rstrip(" %"))


def marked(value, target):
    """In bold where it meets the target."""
    return f"**{value}**" if target and number(value) <= number(target) else value


def verdict_line(tables):
    """How many verdicts are right in all."""
    row = tables["Fits or does not fit"][1]["all"]
    pairs = [(int(row[i]), number(row[i + 1])) for i in (1, 3, 5) if row[i] != "0"]
    rows = sum(n for n, _ in pairs)
    return f"Right in all: {sum(n * share for n, share in pairs) / rows:.1f} % of {rows}.\n"


def step_table(shipped, by_source, by_model, names):
    title = "Step time, rows of quality A and B"
    rows = []
    for name in names:
        median, mean = next(((a, b) for n, a, b in TARGETS if n == name), ("", ""))
        target = f"{median} / {mean}" if median else ""

        def both(tables):
            return (marked(cell(tables, title, name, "median"), median) + " / " +
                    marked(cell(tables, title, name, "mean"), mean))

        baseline = f"{cell(shipped, title, name, 'baseline median')} / {cell(shipped, title, name, 'baseline mean')}"
        rows.append([name, cell(shipped, title, name, "rows"), target, both(by_source), both(by_model), both(shipped),
                     baseline])
    return table(["", "rows", "target", "other sources", "other models", "as shipped", "constant MFU"], rows)


def source_table(shipped, by_source):
    rows = []
    for name in shipped["By source"][1]:
        get = lambda t, column: cell(t, "By source", name, column)
        rows.append([f"`{name}`", get(shipped, "rows"), get(by_source, "median"), get(by_source, "mean"),
                     get(by_source, "bias"), get(by_source, "worst"), get(shipped, "median"), get(shipped, "baseline")])
    return table(["source", "rows", "median", "mean", "bias", "worst", "median as shipped", "constant MFU"], rows)


def sweep_table(shipped, by_source):
    rows = []
    every, clean = (f"Order of layouts within sweeps, {w}" for w in ("all rows", "rows of quality A and B"))
    for name in by_source[every][1]:
        row = [name if " " in name or name == "all" else f"`{name}`"]
        for title in (every, clean):
            row += [cell(by_source, title, name, c) for c in ("sweeps", "mean tau", "mean regret")]
        rows.append(row + [cell(shipped, every, name, "mean regret")])
    return table(["source", "sweeps", "tau", "regret", "sweeps, A and B", "tau", "regret", "regret as shipped, all"], rows)


def copied(shipped, title):
    header, rows = shipped[title]
    return table(header, list(rows.values()))


def short_table(shipped, by_source, by_model):
    title = "Step time, rows of quality A and B"
    rows = [[n, cell(shipped, title, n, "rows"), cell(by_source, title, n, "median"),
             cell(by_model, title, n, "median"), cell(shipped, title, n, "median"),
             cell(shipped, title, n, "baseline median")] for n, _, _ in TARGETS]
    return table(["median error of step time", "runs", "other sources", "other models", "as shipped", "one constant MFU"],
                 rows)


def key_of(chip, key):
    """The value of a calibration file, or of the one that it is like."""
    text = (CALIBRATIONS / f"{chip}.yaml").read_text()
    found = re.search(rf"(?<!\w){key}: ([-+.\de]+(?: us)?)", text)
    if found:
        return found[1]
    return key_of(re.search(r"^like: (\S+)", text, re.MULTILINE)[1], key)


def constant_table():
    """The constants that the fit knows, and what the shipped files say."""
    fit = pathlib.Path("src/validate/fit.cpp").read_text()
    rows = []
    for name, meaning, low, high in re.findall(r'Constant\{"(\w+)",\s*"([^"]+)",\s*([^,]+),\s*([^,]+),', fit):
        unit = " us" if "e-6" in high else ""
        bounds = f"{low.replace('e-6', '')} to {high.replace('e-6', '')}{unit}"
        rows.append([f"`{name}`", meaning, bounds] + [key_of(chip, name) for chip in CHIPS])
    lines = table(["constant", "meaning", "range"] + [f"`{chip}`" for chip in CHIPS], rows).split("\n")
    lines[1] = "|---|---|---|" + "---:|" * len(CHIPS)
    return "\n".join(lines)


def replace_blocks(page, blocks):
    text = page.read_text()
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- accuracy: {name} -->\n).*?(<!-- /accuracy -->)", re.DOTALL)
        text = pattern.sub(lambda m: m[1] + "\n" + block + "\n" + m[2], text)
    page.write_text(text)


def main():
    program, runs = sys.argv[1], sys.argv[2]
    shipped_text = validate(program, runs)
    source_text = validate(program, runs, "--folds", "source", "--svg", "docs/accuracy.svg")
    model_text = validate(program, runs, "--folds", "model")
    shipped, by_source, by_model = (tables_of(t) for t in (shipped_text, source_text, model_text))
    names = list(shipped["Step time, rows of quality A and B"][1])
    blocks = {
        "rows": copied(shipped, "Rows"),
        "step": step_table(shipped, by_source, by_model, names),
        "sources": source_table(shipped, by_source),
        "sweeps": sweep_table(shipped, by_source),
        "memory": copied(shipped, "Memory of the fullest rank"),
        "verdicts": copied(shipped, "Fits or does not fit") + "\n" + verdict_line(shipped),
        "refused": copied(shipped, "Rows that are not predicted"),
        "constants": constant_table(),
        "short": short_table(shipped, by_source, by_model),
    }
    for page in PAGES:
        replace_blocks(page, blocks)
    head = ("# Accuracy: every table\n\nWritten by `./dev accuracy`; [accuracy.md](accuracy.md) says what the figures "
            "mean.\n")
    parts = [("Constants fitted without the source that they predict", source_text),
             ("Constants fitted without the model that they predict", model_text),
             ("Calibrations as shipped: constants fitted on all rows", shipped_text)]
    TABLES.write_text(head + "".join(f"\n## {title}\n\n{text}" for title, text in parts))
    print(f"accuracy: {', '.join(map(str, PAGES))}, {TABLES} and docs/accuracy.svg rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
