#!/usr/bin/env python3
"""Fits the gemm section of a calibration (docs/formats/calibration.md) to measured products.

    tools/fit_gemm.py --hardware H100-80GB-HBM3 --dtype bf16 --processors 132 --bandwidth 3352e9

Reads rows of validation/gemm_measurements.csv, finds efficiency, k_half, tail and small_tile that make the mean
absolute logarithm of predicted / measured smallest (coordinate descent, no random start: the same numbers each time),
and prints them with the errors that are left. The formula is gemm_time of src/cost/kernel_time.cpp, plus what a
measurement holds beside the product: the gap between kernels (--gap-us) and, for rows whose time includes making the
low-precision operand (--cast), seconds in proportion to m k and a fixed overhead, which are fitted and thrown away.
"""
import argparse
import csv
import math
import statistics


def read_rows(a):
    """(m, n, k, seconds, peak FLOP/s) of the chosen rows."""
    rows = []
    with open(a.csv, newline="", encoding="utf-8") as f:
        for r in csv.DictReader(f):
            if r["op"] not in ("gemm", "gemm (Megatron layer shapes)") or r["hardware"] != a.hardware:
                continue
            if not r["dtype"].startswith(a.dtype) or a.source not in r["source"] or a.stage not in r["layout_stage"]:
                continue
            m, n, k = (int(r[x]) for x in "mnk")
            if min(m, n, k) < a.least or 2.0 * m * n * k > a.most_flops:
                continue
            rows.append((m, n, k, float(r["latency_us"]) * 1e-6, a.peak or float(r["peak_tflops"]) * 1e12))
    return rows


def tile_counts(m, n, tile):
    """(tiles, elements of a tile, halvings) of the tile, its halves and quarter, either way round."""
    tm, tn = tile
    shapes = [(tm, tn, 0), (tn, tm, 0), (tm, tn / 2, 1), (tm / 2, tn, 1), (tn, tm / 2, 1), (tm / 2, tn / 2, 2),
              (tn / 2, tm / 2, 2)]
    return [(math.ceil(m / a) * math.ceil(n / b), a * b, h) for a, b, h in shapes]


class Model:
    NAMES = ["efficiency", "k_half", "tail", "small_tile", "cast_bytes", "overhead_us"]
    START = [0.8, 100.0, 0.0, 0.1, 4.0, 5.0]
    STEP = [0.05, 60.0, 0.3, 0.1, 2.0, 5.0]
    LOW = [0.05, 0.0, 0.0, 0.0, 0.0, 0.0]
    HIGH = [1.0, 3000.0, 1.0, 1.0, 60.0, 200.0]

    def __init__(self, a, rows):
        self.a = a
        self.rows = [(r, tile_counts(r[0], r[1], a.tile)) for r in rows]

    def ratios(self, p):
        """predicted / measured of every row."""
        efficiency, k_half, tail, small, cast, overhead = p
        loss = [2.0 ** (h * small) for h in range(3)]
        sm, bandwidth, size = self.a.processors, self.a.bandwidth, self.a.bytes
        out = []
        for (m, n, k, seconds, peak), tiles in self.rows:
            work = min(((1 - tail) * math.ceil(t / sm) + tail * max(1.0, t / sm)) * area * loss[h]
                       for t, area, h in tiles)
            compute = 2.0 * work * (k + k_half) * sm / (efficiency * peak)
            memory = (size * (m * k + k * n) + 2.0 * m * n) / (bandwidth * self.a.memory_efficiency)
            beside = self.a.gap_us * 1e-6 + (overhead * 1e-6 + cast * m * k / bandwidth if self.a.cast else 0.0)
            out.append((max(compute, memory) + beside) / seconds)
        return out

    def loss(self, p):
        return statistics.fmean(abs(math.log(r)) for r in self.ratios(p))

    def fit(self):
        """The better of two descents: from whole waves and from even ones."""
        return min((self.descend(tail) for tail in (0.1, 0.9)), key=self.loss)

    def descend(self, tail):
        free = range(len(self.NAMES) if self.a.cast else 4)
        p, step = list(self.START), list(self.STEP)
        p[2] = tail
        if not self.a.cast:
            p[4] = p[5] = 0.0
        best = self.loss(p)
        while step[0] > 2e-4:
            moved = False
            for i in free:
                for sign in (-1, 1):
                    q = list(p)
                    q[i] = min(max(q[i] + sign * step[i], self.LOW[i]), self.HIGH[i])
                    loss = self.loss(q)
                    if loss < best - 1e-9:
                        best, p, moved = loss, q, True
            if not moved:
                step = [s / 2 for s in step]
        return p


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default="validation/gemm_measurements.csv")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--dtype", default="bf16", help="start of the column dtype")
    parser.add_argument("--source", default="", help="part of the column source")
    parser.add_argument("--stage", default="", help="part of the column layout_stage")
    parser.add_argument("--processors", type=int, required=True)
    parser.add_argument("--bandwidth", type=float, required=True, help="B/s of the data sheet")
    parser.add_argument("--memory-efficiency", type=float, default=0.85)
    parser.add_argument("--peak", type=float, default=0.0, help="FLOP/s; 0: the rows' own")
    parser.add_argument("--tile", type=int, nargs=2, default=[128, 256])
    parser.add_argument("--bytes", type=float, default=2.0, help="an element of the operands")
    parser.add_argument("--gap-us", type=float, default=2.0, help="kernel_latency")
    parser.add_argument("--least", type=int, default=1024, help="of m, n and k")
    parser.add_argument("--most-flops", type=float, default=math.inf)
    parser.add_argument("--cast", action="store_true", help="the rows' time includes quantising the m x k operand")
    a = parser.parse_args()
    rows = read_rows(a)
    if not rows:
        parser.error("no row is left: check --hardware, --dtype, --source, --stage")
    model = Model(a, rows)
    p = model.fit()
    errors = [r - 1 for r in model.ratios(p)]
    size = sorted(abs(e) for e in errors)
    print(f"{a.hardware} {a.dtype} {a.source}: {len(rows)} rows")
    print("  " + ", ".join(f"{n}: {v:.3g}" for n, v in zip(Model.NAMES, p)))
    print(f"  |error| median {statistics.median(size):.1%}, mean {statistics.fmean(size):.1%}, "
          f"90th percentile {size[len(size) * 9 // 10]:.1%}; bias {statistics.fmean(errors):+.1%}")


if __name__ == "__main__":
    main()
