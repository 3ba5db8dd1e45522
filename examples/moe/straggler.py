#!/usr/bin/env python3
"""Stragglers: one overloaded expert rank sets the step time, in the engine and in the simulator.

A model whose routing has collapsed onto experts of one rank, and the same model balanced by a loss, each trained for
some steps at a learning rate of nearly zero so that the routing stays. Shown: rows and busy time of each rank out of the
trace, the fastest measured step, and the step that the simulator predicts for the same plan from the measured routing and a
calibration of this machine.
"""
import json
import subprocess
import sys

import study

COLLAPSED = 25  # steps after which a router without balancing has collapsed
WIDE = {"model.intermediate_size": 1024, "model.num_hidden_layers": 2, "data.validation_fraction": 0}


def command(words):
    done = subprocess.run(words, cwd=study.ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-1000:]}{done.stderr[-2000:]}\n{' '.join(words)}: failed (above)")
    return done.stdout


def calibration(s):
    folder = s.folder / "machine"
    if not (folder / "cluster.yaml").exists():
        print("==> calibrating this machine", flush=True)
        command([s.options.program, "calibrate", "--output", str(folder)] + (["--quick"] if s.quick else []))
    return folder


def rank_loads(run):
    """Rows of each of the two ranks in the last step, by layer."""
    return [[sum(layer["load"][:4]), sum(layer["load"][4:])] for layer in run.steps[-1]["layers"]]


def overloading_seed(s):
    """The seed among a few whose routing, left alone, collapses most onto experts of one rank."""
    def rows_of_busier(seed):
        run = s.train(f"seed-{seed}", {**WIDE, "moe.balancing": "none", "train.seed": seed, "train.steps": COLLAPSED})
        return max(sum(load[r] for load in rank_loads(run)) for r in (0, 1))
    return max(range(1, 2 if s.quick else 7), key=rows_of_busier)


def ranks(run):
    """(computes, waits for the exchange) in milliseconds a step, for each rank, out of the trace of the last steps."""
    events = json.loads((run.folder / "trace.json").read_text())["traceEvents"]
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    spans = [e for e in events if e.get("ph") == "X"]
    steps = len({e["args"]["step"] for e in spans if "step" in e.get("args", {})})
    out = []
    for pid in sorted({e["pid"] for e in spans}):
        passes = sum(e["dur"] for e in spans if e["pid"] == pid and e["cat"] in ("forward", "backward_input"))
        waits = sum(e["dur"] for e in spans if e["pid"] == pid and lanes[e["pid"], e["tid"]] == "ep")
        out.append(((passes - waits) / steps / 1000, waits / steps / 1000))
    return out


def main():
    s = study.Study("straggler", __doc__)
    machine = calibration(s)
    rows, bars = [], []
    for label, settings in (("overloaded", {"moe.balancing": "none", "train.seed": overloading_seed(s)}),
                            ("balanced", {"moe.balancing": "loss", "moe.aux_loss_coef": 1.0})):
        s.train(f"{label}-training", {**WIDE, **settings, "train.steps": COLLAPSED if label == "overloaded" else 150,
                                      "checkpoint.folder": str(s.folder / f"weights-{label}"),
                                      "checkpoint.resume": "false"})
        dump = s.folder / f"{label}.routing"
        run = s.train(label, {**WIDE, **settings, "train.steps": 20, "train.lr": 1e-12, "train.min_lr": 0,
                              "train.lr_warmup_steps": 0, "output.trace_steps": 5},
                      extra=["--start-from", str(s.folder / f"weights-{label}"), "--dump-routing", str(dump)])
        measured = min(run.series("step_time_s")[3:])  # as tessera calibrate --check counts it
        answer = json.loads(command([s.options.program, "simulate", str(run.folder / "plan.json"),
                                     str(machine / "cluster.yaml"), "--calibration",
                                     str(machine / "this-machine.yaml"), "--routing", str(dump), "--json"]))
        predicted = answer["step_seconds"]
        loads = rank_loads(run)
        computes = " / ".join(f"{c:.0f}" for c, _ in ranks(run))
        waits = " / ".join(f"{w:.0f}" for _, w in ranks(run))
        rows.append((label, " ".join(f"{a}:{b}" for a, b in loads), computes, waits, f"{1000 * measured:.1f} ms",
                     f"{1000 * predicted:.1f} ms", f"{100 * (predicted / measured - 1):+.1f} %"))
        bars.append((label, measured, predicted))
    print(study.table(["routing", "rows of rank 0 : rank 1, by layer", "ranks compute, ms", "wait for rows, ms",
                       "fastest step", "simulated step", "error"], rows))
    chart = study.Chart("Step time", "", "ms")
    chart.bars([label for label, _, _ in bars], [("measured", [1000 * m for _, m, _ in bars]),
                                                 ("simulated", [1000 * p for _, _, p in bars])])
    s.write("straggler.svg", study.page([chart], width=520))


if __name__ == "__main__":
    main()
