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
lines in between.
"$ command  # exits 2" expects that exit code. --update writes the output that was seen into the page, and copies
code blocks marked "cpp PATH#PART" from between "// [PART]" and "// [/PART]" of that file.
"""
import pathlib
import re
import subprocess
import sys

FENCE = re.compile(r"^```console\s*$")
SNIPPET = re.compile(r"^(```cpp (\S+)#(\w+)\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
EXITS = re.compile(r"\s+# exits (\d+)\s*$")
# A number with its exponent or unit prefix; a table's bars and signs stay significant.
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?")
BAR = re.compile("[▏▎▍▌▋▊▉█]+")


def shape(line):
    """What must agree: the line with numbers, bars and runs of blanks or rules made alike."""
    line = BAR.sub("█", line)
    return re.sub(r"([-=_ ])\1*", r"\1", NUMBER.sub("#", line)).strip()


def matches(want, got):
    """Whether the shown lines `want` describe the printed lines `got`."""
    if not want:
        return not got
    if want[0].strip() == "...":
        return any(matches(want[1:], got[i:]) for i in range(len(got) + 1))
    return bool(got) and shape(want[0]) == shape(got[0]) and matches(want[1:], got[1:])


def commands(lines):
    """(line of the command, command, first and last line of its output) of each command of a page; lines from 0."""
    inside = False
    current = None
    for number, line in enumerate(lines):
        if inside and (line.startswith("```") or line.startswith("$ ")):
            if current:
                yield (*current, number)
            current = None
        if line.startswith("```"):
            inside = bool(FENCE.match(line))
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
    for number, command, begin, end in commands(lines):
        exits = EXITS.search(command)
        expected_code = int(exits.group(1)) if exits else 0
        code, got = run(EXITS.sub("", command))
        want = lines[begin:end]
        if code == expected_code and matches(want, got):
            good += 1
            continue
        if update and code == expected_code:
            edits.append((begin, end, got))
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
