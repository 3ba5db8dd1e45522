#!/usr/bin/env python3
"""Wraps C++ comment lines of more than 110 columns, which clang-format is told to leave alone.

usage: wrap_comments.py FILE...

Whole-line comments only: what sticks out moves to the front of the next line where that one goes on with the sentence
(a lower-case letter follows its slashes), else to a line of its own. A comment behind code moves above its line.
"""
import pathlib
import re
import sys

COLUMNS = 110
WHOLE = re.compile(r"^(\s*//+ ?)(\s*)(\S.*)$")
BEHIND = re.compile(r"^(\s*)(\S.*?[;{},)])\s+(//\s.*)$")
GOES_ON = re.compile(r"^[a-z(]")


def wrapped(lines):
    out = []
    queue = list(lines)
    while queue:
        line = queue.pop(0)
        if len(line) <= COLUMNS:
            out.append(line)
            continue
        whole = WHOLE.match(line)
        behind = BEHIND.match(line)
        if whole:
            prefix, indent, text = whole.groups()
            at = text.rfind(" ", 0, COLUMNS - len(prefix + indent) + 1)
            if at <= 0:
                out.append(line)
                continue
            head, tail = text[:at].rstrip(), text[at:].strip()
            out.append(prefix + indent + head)
            following = WHOLE.match(queue[0]) if queue else None
            if following and following.group(1) == prefix and following.group(2) == indent and GOES_ON.match(following.group(3)):
                queue[0] = prefix + indent + tail + " " + following.group(3)
            else:
                queue.insert(0, prefix + indent + tail)
        elif behind and '"' not in behind.group(2):
            indent, code, comment = behind.groups()
            queue[:0] = [indent + comment, indent + code]
        else:
            out.append(line)
    return out


def main():
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        text = path.read_text()
        new = "\n".join(wrapped(text.split("\n")))
        if new != text:
            path.write_text(new)


if __name__ == "__main__":
    main()
