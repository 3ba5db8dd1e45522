"""What the studies of this folder share: running jobs, reading their metrics, drawing SVG charts, printing tables.

A study is a program `NAME.py` with a docstring that says what it shows. All take the same options (see arguments()).
Charts are plain SVG: no library is needed beyond Python's own.
"""
import argparse
import json
import math
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
JOB = pathlib.Path(__file__).resolve().parent / "job.yaml"
COLOURS = ("#2f6fb7", "#d1662b", "#3a8f55", "#8c52a3", "#b3912a", "#c0425e", "#4b9aa8", "#6d6d6d")


class Study:
    """One study's options, folder and runs."""

    def __init__(self, name, doc):
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--program", default=str(ROOT / "build" / "tessera"), help="the built program")
        parser.add_argument("--text", help="UTF-8 text to train on; default: what the job names")
        parser.add_argument("--quick", action="store_true", help="a few steps: shows that the study runs, not its point")
        parser.add_argument("--folder", help="where runs and pictures go; default runs/examples/NAME")
        self.options = parser.parse_args()
        self.name = name
        self.quick = self.options.quick
        self.folder = pathlib.Path(self.options.folder or ROOT / "runs" / "examples" / name).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)

    def train(self, label, settings, job=JOB, extra=()):
        """Runs the job with `settings` (a dict of keys); gives its Run. A run that is there already is not repeated."""
        out = self.folder / re.sub(r"[^A-Za-z0-9.=_-]+", "_", label)
        keys = {"output.folder": str(out), "data.tokenizer": str(self.folder / "tokenizer.model")}
        if self.options.text:
            keys["data.text"] = self.options.text
        keys.update(settings)
        if self.quick:
            keys["train.steps"] = 6
            keys["train.lr_warmup_steps"] = 2
            keys["train.global_batch_size"] = 4
            keys["train.micro_batch_size"] = 2
        # The first run trains the tokeniser, in the folder that all share.
        tokenizer = self.folder / "tokenizer.model"
        if not tokenizer.exists():
            del keys["data.tokenizer"]
        command = [self.options.program, "train", str(job), *extra]
        for key, value in keys.items():
            command += ["--set", f"{key}={value}"]
        wanted = out / "command.json"
        asked = [str(job), *extra, *(f"{key}={value}" for key, value in settings.items()), str(self.quick)]
        if not (wanted.exists() and json.loads(wanted.read_text()) == asked):
            print(f"==> {label}", flush=True)
            out.mkdir(parents=True, exist_ok=True)
            for old in out.glob("metrics.jsonl"):
                old.unlink()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{label}: the training failed (above)")
            (out / "summary.txt").write_text(done.stdout)
            wanted.write_text(json.dumps(asked))
            if not tokenizer.exists():
                tokenizer.write_bytes((out / "tokenizer.model").read_bytes())
        return Run(label, out)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        print(f"{name}: {path}")


class Run:
    """The metrics of one run."""

    def __init__(self, label, folder):
        self.label = label
        self.folder = folder
        self.steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.summary = (folder / "summary.txt").read_text()

    def series(self, key):
        return [step[key] for step in self.steps]

    def layers(self, key):
        """Mean over layers, by step."""
        return [sum(layer[key] for layer in step["layers"]) / len(step["layers"]) for step in self.steps]

    def last(self, values, count=20):
        tail = values[-count:]
        return sum(tail) / len(tail)

    def warnings(self):
        return [(step["step"], text) for step in self.steps for text in step.get("warnings", [])]

    def validation(self):
        """Validation loss that the summary printed."""
        found = re.search(r"validation loss\s+([0-9.]+)", self.summary)
        return float(found.group(1)) if found else float("nan")


def table(heads, rows):
    """A Markdown table as text."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(heads))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]) + "\n"


def ticks(low, high, count=5):
    """Round numbers that cover [low, high]."""
    span = (high - low) or 1.0
    step = 10 ** len(str(int(span)))
    while span / step < count:
        step /= 2 if str(step).lstrip("0.").startswith(("1", "2")) else 2.5
    first = -(-low // step) * step
    return [round(first + i * step, 10) for i in range(int((high - first) / step + 1e-9) + 1)]


def smooth(values, width=9):
    half = width // 2
    return [sum(values[max(0, i - half):i + half + 1]) / len(values[max(0, i - half):i + half + 1]) for i in range(len(values))]


class Chart:
    """One panel of lines, marks and bars in data coordinates."""

    def __init__(self, title, x_name, y_name, x_log=False):
        self.title, self.x_name, self.y_name, self.x_log = title, x_name, y_name, x_log
        self.lines = []

    def line(self, label, xs, ys, marks=False, dashed=False):
        self.lines.append((label, list(xs), list(ys), marks, dashed))

    def bars(self, names, groups):
        """Bars side by side: groups of (label, values), a value for each name."""
        self.names, self.groups = names, groups

    def bar_svg(self, left, top, width, height):
        most = max(value for _, values in self.groups for value in values)
        out = [f'<text x="{left + 56}" y="{top + 16}" font-weight="600">{self.title}, {self.y_name}</text>']
        each = (width - 80) / len(self.names)
        bar = each / (len(self.groups) + 1)
        for n, name in enumerate(self.names):
            for g, (_, values) in enumerate(self.groups):
                tall = values[n] / most * (height - 90)
                x = left + 56 + n * each + g * bar
                out.append(f'<rect x="{x:.1f}" y="{top + height - 40 - tall:.1f}" width="{bar - 4:.1f}" '
                           f'height="{tall:.1f}" fill="{COLOURS[g]}" />'
                           f'<text x="{x + bar / 2:.1f}" y="{top + height - 46 - tall:.1f}" '
                           f'text-anchor="middle">{values[n]:.1f}</text>')
            out.append(f'<text x="{left + 56 + n * each + each / 2 - bar / 2:.1f}" y="{top + height - 22}" '
                       f'text-anchor="middle">{name}</text>')
        self.lines = [(label, [], [], False, False) for label, _ in self.groups]
        return "\n".join(out + self.legend(left + width - 16, top + 16))

    def svg(self, left, top, width, height):
        if getattr(self, "groups", None):
            return self.bar_svg(left, top, width, height)
        place = (lambda x: math.log10(x)) if self.x_log else (lambda x: x)
        points = [(place(x), y) for _, xs, ys, _, _ in self.lines for x, y in zip(xs, ys) if y == y]
        x0, x1 = min(p[0] for p in points), max(p[0] for p in points)
        y0, y1 = min(p[1] for p in points), max(p[1] for p in points)
        pad = 0.06 * ((y1 - y0) or 1.0)
        y0, y1 = (0.0 if 0 <= y0 < 0.3 * y1 else y0 - pad), y1 + pad
        x1 += 0 if x1 > x0 else 1
        at_x = lambda x: left + 56 + (place(x) - x0) / (x1 - x0) * (width - 72)
        at_y = lambda y: top + height - 44 - (y - y0) / (y1 - y0) * (height - 44 - 30)
        out = [f'<text x="{left + 56}" y="{top + 16}" font-weight="600">{self.title}</text>']
        for y in ticks(y0, y1):
            out.append(f'<line x1="{left + 56}" x2="{left + width - 16}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}" stroke="#8884" />')
            out.append(f'<text x="{left + 50}" y="{at_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
        places = sorted({x for _, xs, _, _, _ in self.lines for x in xs}) if self.x_log else ticks(x0, x1)
        for x in places:
            out.append(f'<text x="{at_x(x):.1f}" y="{top + height - 26}" text-anchor="middle">{x:g}</text>')
        out.append(f'<text x="{left + width / 2:.0f}" y="{top + height - 8}" text-anchor="middle">{self.x_name}</text>')
        out.append(f'<text x="{left + 12}" y="{top + height / 2:.0f}" text-anchor="middle" '
                   f'transform="rotate(-90 {left + 12} {top + height / 2:.0f})">{self.y_name}</text>')
        for i, (label, xs, ys, marks, dashed) in enumerate(self.lines):
            colour = COLOURS[i % len(COLOURS)]
            pairs = [(at_x(x), at_y(y)) for x, y in zip(xs, ys) if y == y]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
            dash = ' stroke-dasharray="5 4"' if dashed else ""
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash} />')
            if marks:
                out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" />' for x, y in pairs]
        return "\n".join(out + self.legend(left + width - 16, top + 16))

    def legend(self, right, y):
        """Labels in a row that ends at `right`, beside the title."""
        out = []
        for i, (label, _, _, _, _) in reversed(list(enumerate(self.lines))):
            if label:
                right -= 6.2 * len(label) + 26
                out.append(f'<rect x="{right:.0f}" y="{y - 5}" width="14" height="3" fill="{COLOURS[i % len(COLOURS)]}" />'
                           f'<text x="{right + 18:.0f}" y="{y}">{label}</text>')
        return out


def page(charts, width=460, height=300):
    """Charts beside each other as one SVG text."""
    body = "\n".join(chart.svg(i * width, 0, width, height) for i, chart in enumerate(charts))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * len(charts)} {height}" '
            f'font-family="sans-serif" font-size="11" fill="#222">\n'
            f'<rect width="100%" height="100%" fill="#ffffff" />\n{body}\n</svg>\n')


def heat_maps(panels, columns):
    """Panels of (title, row names, rows of shares) beside each other; a cell is dark where the share is large."""
    width, cell, top = 110 + 8 * 34 + 24, 34, 46
    height = top + cell * max(len(names) for _, names, _ in panels) + 30
    out = []
    for p, (title, names, rows) in enumerate(panels):
        left = p * width
        most = max(max(row) for row in rows)
        out.append(f'<text x="{left + 110}" y="18" font-weight="600">{title}</text>')
        for r, (name, row) in enumerate(zip(names, rows)):
            out.append(f'<text x="{left + 102}" y="{top + cell * r + 21}" text-anchor="end">{name}</text>')
            for c, share in enumerate(row):
                x, y = left + 110 + cell * c, top + cell * r
                ink = "#ffffff" if share > 0.6 * most else "#222222"
                out.append(f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" fill="#2f6fb7" '
                           f'fill-opacity="{share / most:.3f}" stroke="#8884" />'
                           f'<text x="{x + cell / 2 - 1:.0f}" y="{y + 20}" text-anchor="middle" fill="{ink}" '
                           f'font-size="10">{100 * share:.0f}</text>')
        for c in range(len(rows[0])):
            out.append(f'<text x="{left + 110 + cell * c + cell / 2 - 1:.0f}" y="{top - 6}" text-anchor="middle">{c}</text>')
        out.append(f'<text x="{left + 110}" y="{height - 10}">{columns}; % of the row</text>')
    body = "\n".join(out)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * len(panels)} {height}" '
            f'font-family="sans-serif" font-size="11" fill="#222">\n'
            f'<rect width="100%" height="100%" fill="#ffffff" />\n{body}\n</svg>\n')
