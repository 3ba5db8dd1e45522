#!/usr/bin/env python3
"""Measures training over emulated slow links (tools/cluster.py) and writes docs/network.md: ./dev network.

Each parallel axis across a link and inside a node, overlap on and off, hierarchical against flat, and predicted
against measured steps. Some minutes; the machine should have nothing else to do.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CANNOT = 77
LAYOUTS = "1 rank;dp 2;tp 2;pp 2;"
SHORT = "overlap on, 2048;overlap off, 2048"  # tokens a micro-batch
LONG = "overlap on, 6144;overlap off, 6144"


def say(text):
    print(f"==> {text}", flush=True)


class Runs:
    """Starts tessera calibrate: alone, or in the ranks of a cluster."""

    def __init__(self, program, folder, steps):
        self.program, self.folder, self.steps = os.path.abspath(program), folder, steps

    def machine(self, quick):
        command = [self.program, "calibrate", "--output", "machine", "--json"] + (["--quick"] if quick else [])
        return self._json(command, "tessera calibrate")

    def cluster(self, link, nodes=2, ranks=1, mapping="slot", only="", check=True):
        command = [sys.executable, os.path.join(ROOT, "tools/cluster.py"), "--nodes", str(nodes), "--ranks-per-node",
                   str(ranks), "--link", link, "--map", mapping, "--program", self.program, "--", "calibrate",
                   "--machine", "machine", "--name", "network", "--output", f"network-{link}", "--json"]
        if check:
            command += ["--check", "--check-steps", str(self.steps), "--check-only", only]
        return self._json(command, f"{nodes} nodes of {ranks} at {link}")

    def _json(self, command, what):
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode == CANNOT:
            sys.stderr.write(done.stderr)
            sys.exit(CANNOT)
        if done.returncode != 0:
            sys.stderr.write(done.stdout + done.stderr)
            sys.exit(f"network: {what} ended with exit code {done.returncode} (above)")
        return json.loads(done.stdout.splitlines()[-1])


def steps_of(run):
    return {s["name"]: s for s in run["steps"]}


def ms(seconds):
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def percent(share):
    return f"{100 * share:+.1f} %"


def table(header, rows):
    text = "| " + " | ".join(header) + " |\n|---" + "|---:" * (len(header) - 1) + "|\n"
    return text + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def kendall_tau(pairs):
    """Of (predicted, measured): 1 when both put all pairs of layouts into the same order, -1 when in the opposite."""
    agree = total = 0
    for (p, m), (q, n) in itertools.combinations(pairs, 2):
        product = (p - q) * (m - n)
        agree += (product > 0) - (product < 0)
        total += 1
    return agree / total if total else 0.0


def ordered_pairs(pairs, apart=0.1):
    """Of the pairs of layouts whose measured times differ by more than `apart`: (in the predicted order, all)."""
    clear = [((p - q) * (m - n) > 0) for (p, m), (q, n) in itertools.combinations(pairs, 2)
             if abs(m - n) > apart * min(m, n)]
    return sum(clear), len(clear)


def compared(step):
    return "predicted_seconds" in step and "1 rank" not in step["name"] and "overlap" not in step["name"]


# ---------------------------------------------------------------- sections


def links_text(by_link):
    rows = []
    for link, run in by_link.items():
        n = run["network"]
        calls = {(c["name"], c["bytes_sent"]): c["seconds"] for c in run["calls"]}
        reduce_4 = max((c for c in calls if c[0] == "all_reduce"), key=lambda c: c[1])
        send_4 = max((c for c in calls if c[0] == "send"), key=lambda c: c[1])
        worst = max(f["median_error"] for f in run["fits"])
        rows.append([link, f"{n['bandwidth'] * 8e-6:.0f} Mbit/s", f"{calls[reduce_4] * 1e3:.1f} ms",
                     f"{calls[send_4] * 1e3:.1f} ms", f"{100 * worst:.1f} %",
                     f"{100 * n['compute_slowdown']:.0f} %", f"{100 * n['transfer_slowdown']:.0f} %"])
    return table(["link", "fitted bandwidth", "all_reduce of 4 MiB", "message of 4 MiB", "fit, worst median error",
                  "compute lost beside an all-reduce", "all-reduce longer beside compute"], rows)


def axes_text(across, inside):
    names = [("data parallel", "dense, dp 2"), ("ZeRO-1", "dense, dp 2, ZeRO-1"), ("tensor parallel", "dense, tp 2"),
             ("pipeline, 1F1B", "dense, pp 2, 1F1B"), ("pipeline, ZB-H1", "dense, pp 2, ZB-H1"),
             ("experts, data parallel", "MoE, dp 2"), ("expert parallel", "MoE, dp 2, ep 2"),
             ("expert tensor parallel", "MoE, tp 2, etp 2"), ("experts, pipeline", "MoE, pp 2, 1F1B")]
    rows = []
    for what, name in names:
        if name not in across or name not in inside:
            continue
        a, i = across[name], inside[name]
        stood = sum(x["exposed_seconds"] for x in a["axes"].values()) / 2 / a["measured_seconds"]
        rows.append([what, ms(i["measured_seconds"]), ms(a["measured_seconds"]), ms(a["median_seconds"]),
                     f"{a['measured_seconds'] / i['measured_seconds']:.2f}", f"{100 * stood:.0f} %"])
    return table(["axis of the 2 ranks", "inside a node", "across, fastest", "across, median", "across / inside",
                  "stood still, across"], rows)


def four_text(slot, node):
    where = {"dense, dp 4": ("dp: both", "dp: both"), "dense, tp 2, dp 2": ("tp inside, dp across", "tp across, dp inside"),
             "dense, tp 2, pp 2": ("tp inside, pp across", "tp across, pp inside"),
             "dense, dp 2, pp 2": ("dp inside, pp across", "dp across, pp inside"),
             "MoE, dp 4, ep 2": ("ep inside", "ep across"), "MoE, dp 4, ep 4": ("ep: both", "ep: both")}
    rows = []
    for name, (by_slot, by_node) in where.items():
        if name in slot and name in node:
            s, n = slot[name]["measured_seconds"], node[name]["measured_seconds"]
            rows.append([name, by_slot, ms(s), by_node, ms(n), f"{n / s:.2f}"])
    return table(["layout", "neighbours share a node", "step", "neighbours apart", "step", "apart / together"], rows)


def hierarchical_text(slot):
    rows = []
    for name, what in (("MoE, dp 4, ep 4", "flat"), ("MoE, dp 4, ep 4, hierarchical", "hierarchical")):
        if name not in slot:
            continue
        s = slot[name]
        rows.append([what, ms(s["measured_seconds"]), ms(s["median_seconds"])] + [
            f"{s['axes'][axis]['sent_bytes'] / 1e6:.1f} MB" if axis in s["axes"] else "-" for axis in ("ep", "ep_inter", "ep_intra")])
    return table(["rows to experts", "step", "median", "ep", "ep_inter", "ep_intra"], rows)


def all_reduce_text(run):
    r = run["all_reduce"]
    return (f"An all-reduce of {r['bytes'] / 1e6:.1f} MB over the same four ranks: one ring {ms(r['flat_seconds'])}, hierarchical "
            f"{ms(r['hierarchical_seconds'])}, {r['flat_seconds'] / r['hierarchical_seconds']:.2f} times as fast\n"
            "(reduce-scatter inside of the nodes, all-reduce across, all-gather inside: two thirds of the ring's bytes cross).\n")


def overlap_text(by_link):
    rows = []
    for link, run in by_link.items():
        steps = steps_of(run)
        for tokens in (2048, 6144):
            on, off = (steps.get(f"overlap {x}, {tokens} tokens") for x in ("on", "off"))
            if not on or not off:
                continue
            reductions = off["axes"]["dp"]["exposed_seconds"] / 2
            exposed = on["axes"]["dp"]["exposed_seconds"] / 2
            rows.append([link, str(tokens), ms(off["measured_seconds"]), ms(on["measured_seconds"]), ms(reductions),
                         ms(exposed), f"{100 * (1 - exposed / reductions):.0f} %",
                         f"{100 * (off['measured_seconds'] - on['measured_seconds']) / reductions:.0f} %"])
    return table(["link", "tokens a micro-batch", "step, off", "step, on", "all-reduces, off", "waited for, on", "hidden",
                  "of their time saved"], rows)


def predictions_text(link, run):
    steps = [s for s in run["steps"] if compared(s)]
    rows = []
    for s in sorted(steps, key=lambda s: s["measured_seconds"]):
        rows.append([s["name"], ms(s["predicted_seconds"]), ms(s["measured_seconds"]), ms(s["median_seconds"]),
                     percent(s["predicted_seconds"] / s["measured_seconds"] - 1)])
    errors = [abs(s["predicted_seconds"] / s["measured_seconds"] - 1) for s in steps]
    both = [(s["predicted_seconds"], s["measured_seconds"]) for s in steps]
    tau = kendall_tau(both)
    right, clear = ordered_pairs(both)
    best = {key: min(steps, key=lambda s: s[key])["name"] for key in ("predicted_seconds", "measured_seconds")}
    one = steps_of(run)["dense, 1 rank"], steps_of(run)["MoE, 1 rank"]
    text = table(["layout, fastest first", "predicted", "measured", "median", "error"], rows)
    text += (f"\n{len(steps)} layouts at {link}: mean error {100 * sum(errors) / len(errors):.1f} %, largest "
             f"{100 * max(errors):.1f} %, {sum(e <= 0.1 for e in errors)} within 10 %; Kendall's tau of the two orders "
             f"{tau:.2f}; of the {clear} pairs that differ by more than 10 % as measured, {right} are in the predicted "
             f"order. Fastest as predicted: {best['predicted_seconds']}; as measured: {best['measured_seconds']}.\n"
             f"One rank alone, to which only products were fitted: dense {ms(one[0]['measured_seconds'])}, MoE "
             f"{ms(one[1]['measured_seconds'])} ({percent(one[1]['predicted_seconds'] / one[1]['measured_seconds'] - 1)}).\n")
    return text, tau, errors


def machine_name():
    try:
        with open("/proc/cpuinfo", encoding="ascii") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{len(os.sched_getaffinity(0))} cores of {model}"


PAGE = """# Training over a slow network

Written by `./dev network` on {date}: {machine}, load {load} when it began. Nodes are network namespaces of this
machine, joined by veth pairs that token buckets hold to a rate in each direction (`./dev cluster`, below). Ranks are
processes under Open MPI; each node has its share of the cores, here one. Times are the fastest of {steps} steps after
one to warm up, and their median; comparisons hold within one run.

The models: 4 layers of hidden 256, sequence 256, vocabulary 1024; dense with FFN 704 (3.7 M parameters, 15 MB of
gradients), MoE with 8 experts top-2 of FFN 352 (9.5 M, 38 MB). A step is 16 sequences.

```sh
./dev cluster --nodes 2 --ranks-per-node 1 --link 1gbit -- train job.yaml
./dev cluster --nodes 2 --ranks-per-node 2 --link 200mbit --map node -- train job.yaml   # neighbours on different nodes
```

`--map node` puts neighbouring ranks on different nodes, so that tensor parallelism crosses the link. It needs root, and
ends with exit code 77 and the reason where the kernel forbids namespaces. Whatever ends it, nothing stays behind.

## The links, as Tessera's own transport finds them

`mpirun ... tessera calibrate --machine FOLDER` measures collectives between two hosts and adds a tier to the machine's
cluster file.

{links}
## Which axis may cross a link

Two ranks at 1gbit, one on each of two nodes, against the same two processes on one node:

{axes}
Pipeline stages hand on activations only and hardly notice; tensor parallelism does so in every layer, forward and
backward, and is what must stay inside a node. "Stood still": share of the step in which a rank waited for others.

Two nodes of two ranks at 1gbit. Two ranks share a core here, so only the ratios say something:

{four}
## Flat against hierarchical

Four ranks on two nodes, experts on all of them, bytes of all ranks in a step:

{hierarchical}
Flat sends a row to every expert's rank (half of `ep` crosses the link, in balance); hierarchical sends it once to each
node (`ep_inter` crosses, `ep_intra` does not).

{all_reduce}
Gradients of a training go round the flat ring: it adds in one order on every cluster, and what it costs more is hidden
while backward lasts (below).

## Gradients beside backward

Data parallel 2, 12 layers (10 M parameters, 41 MB of gradients), one micro-batch a step. Gradients are complete only
while the last micro-batch runs backward, so its length is what hides them. Off: `train.overlap_grad_reduce: false`.
Hidden: 1 - waited for, on / all-reduces, off.

{overlap}
## Predicted against measured

Predicted is the simulated step (`cost::engine_step`, `sim::simulate`) with the calibration of this machine and the
tier above; the routing of mixtures is what the router gave. Nothing was fitted to these steps.
"""


def main():
    parser = argparse.ArgumentParser(prog="./dev network", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/tessera")
    parser.add_argument("--output", default=os.path.join(ROOT, "docs/network.md"))
    parser.add_argument("--steps", type=int, default=3, help="of each layout, after one to warm up")
    parser.add_argument("--quick", action="store_true", help="one link, few layouts: to try the tool")
    options = parser.parse_args()
    started, load = time.time(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tessera-network-") as folder:
        runs = Runs(options.program, folder, options.steps)
        say("calibrating this machine")
        runs.machine(options.quick)
        by_link = {}
        for link in ("1gbit",) if options.quick else ("1gbit", "200mbit"):
            say(f"2 nodes of 1 rank at {link}: links, layouts, overlap")
            by_link[link] = runs.cluster(link, only=LAYOUTS + (SHORT if link == "1gbit" else LONG))
        if not options.quick:
            say("2 nodes of 1 rank at 500mbit: overlap")
            by_link["500mbit"] = runs.cluster("500mbit", only=SHORT)
        by_link = dict(sorted(by_link.items(), key=lambda x: -x[1]["network"]["bandwidth"]))
        say("2 ranks on one node")
        inside = steps_of(runs.cluster("none", nodes=1, ranks=2, only="dense, dp 2;tp 2;pp 2, 1F1B;ZB-H1;MoE, dp 2"))
        say("2 nodes of 2 ranks, neighbours together")
        together = runs.cluster("1gbit", ranks=2, only="tp 2, dp 2;tp 2, pp 2;dp 2, pp 2;dp 4")
        slot = steps_of(together)
        say("2 nodes of 2 ranks, neighbours apart")
        node = steps_of(runs.cluster("1gbit", ranks=2, mapping="node", only="tp 2, dp 2;tp 2, pp 2;dp 2, pp 2;dp 4"))
    page = PAGE.format(date=datetime.date.today().isoformat(), machine=machine_name(), load=f"{load:.1f}",
                       steps=options.steps, links=links_text(by_link), axes=axes_text(steps_of(by_link["1gbit"]), inside),
                       four=four_text(slot, node), hierarchical=hierarchical_text(slot),
                       all_reduce=all_reduce_text(together), overlap=overlap_text(by_link))
    for link, run in by_link.items():
        if not any(compared(s) for s in run["steps"]):
            continue
        text, tau, errors = predictions_text(link, run)
        page += f"\n### {link}\n\n{text}"
        say(f"{link}: Kendall's tau {tau:.2f}, errors up to {100 * max(errors):.1f} %")
    with open(options.output, "w", encoding="utf-8") as file:
        file.write(page)
    say(f"wrote {os.path.relpath(options.output)} after {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
