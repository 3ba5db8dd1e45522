#!/usr/bin/env python3
"""Counts single tests out of a folder of GoogleTest XML files and ctest's own report, and prints the verdict.

usage: test_summary.py FOLDER

FOLDER holds ctest.junit (one entry per program) and one <program>.xml per test program that came to its end. A program
without such a file crashed, hung or is not a GoogleTest program: it counts as one test with ctest's verdict.
Ends with 1 when a test failed or when no test ran.
"""
import pathlib
import sys
import xml.etree.ElementTree as xml


def programs(folder):
    """(name, passed, seconds) of each program that ctest ran."""
    for case in xml.parse(folder / "ctest.junit").getroot().iter("testcase"):
        yield case.get("name"), case.get("status") == "run", float(case.get("time", 0))


def single_tests(path):
    """(name, verdict, reason) of each test in one GoogleTest XML file."""
    for case in xml.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None:
            yield name, "failed", ""
        elif skipped is not None:
            lines = [line for line in (skipped.get("message") or skipped.text or "").splitlines() if line.strip()]
            yield name, "skipped", " ".join(lines[-1:]) or "no reason given"
        elif case.get("status") == "run":
            yield name, "passed", ""


def main():
    folder = pathlib.Path(sys.argv[1])
    total = {"passed": 0, "failed": 0, "skipped": 0}
    notes = {"failed": [], "skipped": []}
    print(f"\n{'room':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for program, good, seconds in programs(folder):
        count = dict.fromkeys(total, 0)
        report = folder / f"test_{program}.xml"
        tests = []
        if report.exists():
            try:
                tests = list(single_tests(report))
            except xml.ParseError:  # killed while it wrote
                good = False
        for name, verdict, reason in tests:
            count[verdict] += 1
            if verdict in notes:
                notes[verdict].append(f"{program}: {name}" + (f": {reason}" if reason else ""))
        if not good and count["failed"] == 0:
            count["failed"] = 1
            notes["failed"].append(f"{program}: the program did not end well (crash, hang or sanitizer report above)")
        elif not report.exists():
            count["passed"] += 1
        for verdict in total:
            total[verdict] += count[verdict]
        print(f"{program:<12}{count['passed']:>8}{count['failed']:>8}{count['skipped']:>9}{seconds:>9.1f}")
    for verdict in ("skipped", "failed"):
        if notes[verdict]:
            print(f"\n{verdict}:")
            for note in notes[verdict]:
                print(f"  {note}")
    print(f"\n{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
