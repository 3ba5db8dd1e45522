#!/usr/bin/env python3
"""Rules of docs/claims.md on this machine: what is predicted, and what a small training run measures.

usage: measure.py ring|bubble|capacity|collapse|placement [--program build/tessera]

Each trains one of the jobs of this folder for some steps and prints both figures. Bytes and counts are the same on every
machine; idle shares are not.
"""
import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys

FOLDER = pathlib.Path("examples/claims")
RUNS = pathlib.Path("runs/claims")


def tessera(*arguments):
    """What the program prints; its own words when it fails."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr[-2000:]}\ntessera {' '.join(map(str, arguments))} failed (above)")
    return done.stdout


def settings(keys):
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def train(job, keys, *extra):
    """Trains; the metrics of all steps."""
    out = RUNS / job
    (out / "metrics.jsonl").unlink(missing_ok=True)
    tessera("train", FOLDER / f"{job}.yaml", *settings(keys), *extra)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def ring():
    """Bytes that a replica sends to sum its gradients."""
    print("replicas  2(N-1)/N x gradients   simulated    measured  bytes a replica and step")
    for replicas in (2, 4, 8):
        keys = {"parallel.dp": replicas, "train.steps": 1}
        step = train("dense", keys)[-1]
        simulated = json.loads(tessera("simulate", FOLDER / "dense.yaml", "--cluster", "cpu-box", *settings(keys), "--json"))
        parameters = 512 * 128 * 2 + 128 + 8 * (4 * 128 * 128 + 3 * 128 * 256 + 2 * 128)
        formula = 2 * (replicas - 1) / replicas * 4 * parameters
        print(f"{replicas:8}  {formula:20,.0f}  {simulated['ranks'][0]['bytes_sent']['dp']:10,.0f}  "
              f"{step['axes']['dp']['sent_bytes'] / replicas:10,.0f}")


def bubble():
    """Idle share of pipelines of equal stages, replayed from the CPU time of each action."""
    print("ranks  schedule  micro-batches   formula  measured")
    for ranks, schedule, batches in ((2, "naive", 1), (4, "naive", 1), (8, "naive", 1), (4, "1f1b", 4), (4, "1f1b", 16)):
        keys = {"parallel.pp": ranks, "parallel.schedule": schedule, "train.global_batch_size": batches,
                "train.sequence_length": 128, "train.steps": 6}
        steps = train("dense", keys)
        measured = sorted(step["bubble"] for step in steps[1:])[2]
        formula = (ranks - 1) / ranks if schedule == "naive" else (ranks - 1) / (batches + ranks - 1)
        print(f"{ranks:5}  {schedule:8}  {batches:13}   {formula:7.1%}  {measured:8.1%}")


def capacity():
    """Choices that find their expert full, of one micro-batch with counts N_e: sum of max(0, N_e - C)."""
    tokens, top_k, experts = 8 * 128, 2, 8
    print("factor  capacity  layer  choices of the 8 experts                     predicted  dropped")
    for factor in (1.0, 1.25, 2.0):
        limit = math.ceil(factor * tokens * top_k / experts)
        step = train("moe", {"moe.capacity_factor": factor, "train.steps": 20})[-1]
        for layer in step["layers"]:
            predicted = sum(max(0, load - limit) for load in layer["load"])
            dropped = round(layer["drop_rate"] * sum(layer["load"]))
            counts = " ".join(f"{load:4}" for load in layer["load"])
            print(f"{factor:6}  {limit:8}  {layer['layer']:5}  {counts}  {predicted:9}  {dropped:7}")


def collapse():
    """Effective experts of a router with and without a balancing loss."""
    print("balancing  effective experts of 8, step 1   step 100   busiest / mean   dead")
    for balancing, coefficient in (("none", 0), ("loss", 0.05)):
        steps = train("moe", {"moe.balancing": balancing, "moe.aux_loss_coef": coefficient, "train.steps": 100,
                              "train.lr": "1e-2", "train.sequence_length": 64})
        def mean(step, key):
            return sum(layer[key] for layer in step["layers"]) / len(step["layers"])
        print(f"{balancing:9}  {mean(steps[0], 'effective_experts'):31.1f}  {mean(steps[-1], 'effective_experts'):9.1f}  "
              f"{mean(steps[-1], 'load_max_over_mean'):15.2f}  {mean(steps[-1], 'dead_experts'):5.1f}")


def placement():
    """Bytes between two nodes, of one step from the same weights, before and after experts that are chosen together share
    a node."""
    keys = {"parallel.dp": 4, "parallel.ep": 4, "parallel.ranks_per_node": 2, "train.lr": "5e-3",
            "train.micro_batch_size": 2, "moe.dispatch": "hierarchical"}
    trained, again = RUNS / "trained", RUNS / "again"
    routing, placed = RUNS / "routing.safetensors", RUNS / "placement.json"
    shutil.rmtree(trained, ignore_errors=True)
    train("moe", keys | {"train.steps": 40, "checkpoint.folder": trained})

    def one_step(*extra):
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(trained, again)
        return train("moe", keys | {"train.steps": 41, "checkpoint.folder": again}, *extra)[-1]

    before = one_step("--dump-routing", routing, "--dump-routing-tokens", 1024)
    told = json.loads(tessera("place", routing, "--nodes", 2, "--gpus-per-node", 2, "--method", "traffic", "--cap", 0.5,
                              "--model", "mixtral-8x7b", "--output", placed, "--json"))
    across = {row["name"]: row["across_bytes_per_token"] for row in told["placements"]}
    after = one_step("--placement", placed)
    sent = [step["axes"]["ep_inter"]["sent_bytes"] for step in (before, after)]
    print(f"predicted: {across['traffic'] / across['contiguous'] - 1:+.1%} bytes between nodes, tokens spread evenly")
    print(f"measured:  {sent[1] / sent[0] - 1:+.1%} ({sent[0]:,} -> {sent[1]:,} bytes in a step)")
    print(f"loss:      {before['loss']:.5f} and {after['loss']:.5f}")


CLAIMS = {f.__name__: f for f in (ring, bubble, capacity, collapse, placement)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--program", default="build/tessera")
    options = parser.parse_args()
    PROGRAM = options.program
    CLAIMS[options.claim]()
