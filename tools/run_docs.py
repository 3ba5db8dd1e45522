#!/usr/bin/env python3
"""Runs the commands that the pages show and compares what they print with what the page says.

usage: run_docs.py [--update] PAGE.md...

A fenced block marked `console` holds commands after "$ " and their output below:

    ```console
    $ build/tessera --version
    tessera 0.1.0
    ```

The commands of one page run one after another from the root of the checkout. Output (stdout and stderr together) is
compared line by line; a number matches any number, a bar any bar, a run of blanks any other run, and a line "..." any
lines in between. In a block marked `console exact` the numbers must be those that are shown, too: bytes, counts and
predictions, which every machine prints alike.
"$ command  # exits 2" expects that exit code. --update writes the output that was seen into the page, and copies
code blocks marked "cpp PATH#PART" from between "// [PART]" and "// [/PART]" of that file; where only numbers differ,
the lines "..." stay.
"""
import pathlib
import re
import subprocess
import sys

FENCE = re.compile(r"^```console( exact)?\s*$")
SNIPPET = re.compile(r"^(```cpp (\S+)#(\w+)\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
EXITS = re.compile(r"\s+# exits (\d+)\s*$")
# A number with its exponent or unit prefix; a table's bars and signs stay significant.
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?")
BAR = re.compile("[▏▎▍▌▋▊▉█]+")


def shape(line):
    """What must agree: the line with numbers, bars and runs of blanks or rules made alike."""
    line = BAR.sub("█", line)
    return re.sub(r"([-=_ ])\1*", r"\1", NUMBER.sub("#", line)).strip()


def aligned(want, got, alike):
    """The printed lines that the shown lines `want` stand for, "..." kept; None where `want` does not describe `got`.

    Two lines agree when `alike` makes the same of both. A line "..." stands for as few lines as it can; the earliest
    place of what follows it leaves the most to what comes later.
    """
    parts = [[]]
    for line in want:
        if line.strip() == "...":
            parts.append([])
        else:
            parts[-1].append(line)

    def fits(part, at):
        return at + len(part) <= len(got) and all(alike(a) == alike(b) for a, b in zip(part, got[at:]))

    out, at = [], 0
    for index, part in enumerate(parts):
        first, last = index == 0, index == len(parts) - 1
        places = range(at, len(got) - len(part) + 1)
        if first:
            places = range(0, 1)
        if last:
            places = [p for p in (list(places) if first else [len(got) - len(part)]) if p >= at]
        place = next((p for p in places if fits(part, p) and (not last or p + len(part) == len(got))), None)
        if place is None:
            return None
        out += ([] if first else ["..."]) + got[place:place + len(part)]
        at = place + len(part)
    return out


def matches(want, got, exact=False):
    """Whether the shown lines `want` describe the printed lines `got`."""
    return aligned(want, got, str.rstrip if exact else shape) is not None


def commands(lines):
    """(line of the command, command, first and last line of its output, numbers must agree) of each command of a page;
    lines from 0."""
    inside = None
    current = None
    for number, line in enumerate(lines):
        if inside and (line.startswith("```") or line.startswith("$ ")):
            if current:
                yield (*current, number, bool(inside[1]))
            current = None
        if line.startswith("```"):
            inside = FENCE.match(line)
        elif inside and line.startswith("$ "):
            current = (number, line[2:], number + 1)


def run(command):
    done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=600, check=False)
    lines = done.stdout.decode(errors="replace").rstrip("\n").split("\n")
    return done.returncode, [] if lines == [""] else lines


def with_snippets(page):
    """The page's text with each named code block copied from its file."""

    def copy(match):
        text = pathlib.Path(match[2]).read_text()
        begin, end = f"// [{match[3]}]\n", f"// [/{match[3]}]\n"
        return match[1] + text.split(begin)[1].split(end)[0]

    return SNIPPET.sub(copy, page)


def check_page(path, update):
    if update:
        text = path.read_text()
        copied = with_snippets(text)
        if copied != text:
            path.write_text(copied)
            print(f"{path}: code copied anew")
    lines = path.read_text().split("\n")
    good, bad, edits = 0, 0, []
    for number, command, begin, end, exact in commands(lines):
        exits = EXITS.search(command)
        expected_code = int(exits.group(1)) if exits else 0
        code, got = run(EXITS.sub("", command))
        want = lines[begin:end]
        if code == expected_code and matches(want, got, exact):
            good += 1
            continue
        if update and code == expected_code:
            edits.append((begin, end, aligned(want, got, shape) or got))
            continue
        bad += 1
        print(f"{path}:{number + 1}: the page and the command disagree: {command}")
        if code != expected_code:
            print(f"  exit code {code}, expected {expected_code}")
        print("  the page shows:", *want, sep="\n    ")
        print("  the command prints:", *got[:60], sep="\n    ")
        print(f"  mend: correct the page (tools/run_docs.py --update {path}) or the command")
    for begin, end, got in reversed(edits):
        lines[begin:end] = got
    if edits:
        path.write_text("\n".join(lines))
        print(f"{path}: {len(edits)} outputs rewritten")
    return good, bad


def main():
    arguments = sys.argv[1:]
    update = "--update" in arguments
    total_good, total_bad = 0, 0
    for name in arguments:
        if name != "--update":
            good, bad = check_page(pathlib.Path(name), update)
            total_good += good
            total_bad += bad
    print(f"docs: {total_good} commands print what their pages show, {total_bad} do not")
    return 1 if total_bad else 0


if __name__ == "__main__":
    sys.exit(main())
