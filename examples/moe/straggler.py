#!/usr/bin/env python3
"""Stragglers: one overloaded expert rank sets the step time, in the engine and in the simulator.

A model whose routing has collapsed onto experts of one rank, and the same model balanced by a bias, each trained for
some steps at a learning rate of zero so that the routing stays. Shown: rows and busy time of each rank out of the
trace, the measured step, and the step that the simulator predicts for the same plan from the measured routing and a
calibration of this machine.
"""
import json
import statistics
import subprocess
import sys

import study

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


def busy(run):
    """Milliseconds a step that each rank computes, out of the trace of the last steps."""
    events = json.loads((run.folder / "trace.json").read_text())
    events = events["traceEvents"] if isinstance(events, dict) else events
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "process_name"}
    spans = [e for e in events if e.get("ph") == "X"]
    steps = max(1, sum(1 for e in spans if e["name"] == "step") // max(1, len(names)))
    total = {}
    for e in spans:
        if e.get("cat") == "compute":
            total[e["pid"]] = total.get(e["pid"], 0.0) + e["dur"] / 1000.0
    return [total.get(pid, 0.0) / steps for pid in sorted(names)]


def main():
    s = study.Study("straggler", __doc__)
    machine = calibration(s)
    rows, bars = [], []
    for label, settings in (("collapsed", {"moe.balancing": "none"}),
                            ("balanced", {"moe.balancing": "bias", "moe.bias_update_rate": 0.03})):
        first = {**WIDE, **settings, "train.steps": 40 if label == "collapsed" else 150,
                 "checkpoint.folder": str(s.folder / f"weights-{label}"), "checkpoint.resume": "false"}
        s.train(f"{label}-training", first)
        dump = s.folder / f"{label}.routing"
        frozen = {**WIDE, **settings, "train.steps": 20, "train.lr": 1e-12, "train.min_lr": 0,
                  "train.lr_warmup_steps": 0, "output.trace_steps": 5}
        if label == "balanced":
            frozen["moe.bias_update_rate"] = 1e-12
        run = s.train(label, frozen, extra=["--start-from", str(s.folder / f"weights-{label}"),
                                           "--dump-routing", str(dump)])
        measured = statistics.median(run.series("step_time_s")[-10:])
        answer = json.loads(command([s.options.program, "simulate", str(run.folder / "plan.json"),
                                     str(machine / "cluster.yaml"), "--calibration",
                                     str(machine / "this-machine.yaml"), "--routing", str(dump), "--json"]))
        predicted = answer["step_seconds"]
        loads = [[sum(layer["load"][:4]), sum(layer["load"][4:])] for layer in run.steps[-1]["layers"]]
        rows.append((label, " ".join(f"{a}:{b}" for a, b in loads), f"{1000 * measured:.1f} ms",
                     f"{1000 * predicted:.1f} ms", f"{100 * (predicted / measured - 1):+.1f} %"))
        bars.append((label, measured, predicted))
    print(study.table(["routing", "rows of rank 0 : rank 1, by layer", "measured step", "simulated step", "error"], rows))
    chart = study.Chart("Step time", "", "ms")
    chart.bars([label for label, _, _ in bars], [("measured", [1000 * m for _, m, _ in bars]),
                                                 ("simulated", [1000 * p for _, _, p in bars])])
    s.write("straggler.svg", study.page([chart], width=520))


if __name__ == "__main__":
    main()
