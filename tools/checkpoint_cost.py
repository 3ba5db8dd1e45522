#!/usr/bin/env python3
"""What checkpoints add to the training steps beside them: one run of dp 2 whose checkpoints are written in the
background, both cores computing. Compares the steps after each checkpoint with the others of the same run.

    python3 tools/checkpoint_cost.py --program build-bench/tessera [--steps 40] [--every 4]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile

JOB = """model: {{model_type: llama, num_hidden_layers: 6, hidden_size: 512, intermediate_size: 1408,
  num_attention_heads: 8, num_key_value_heads: 8, vocab_size: 4096, max_position_embeddings: 256}}
train: {{steps: {steps}, sequence_length: 256, global_batch_size: 8, micro_batch_size: 4}}
parallel: {{dp: 2}}
data: {{text: text.txt, vocab_size: 4096}}
checkpoint: {{folder: run/checkpoints, every: {every}, keep: 1}}
output: {{folder: run}}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build-bench/tessera")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=4)
    options = parser.parse_args()
    program = os.path.abspath(options.program)
    with tempfile.TemporaryDirectory(prefix="tessera-checkpoint-cost-") as folder:
        chance = random.Random(1)
        words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(5000)]
        with open(os.path.join(folder, "text.txt"), "w", encoding="ascii") as file:
            file.writelines(" ".join(chance.choices(words, k=12)) + "\n" for _ in range(20000))
        with open(os.path.join(folder, "job.yaml"), "w", encoding="ascii") as file:
            file.write(JOB.format(steps=options.steps, every=options.every))
        done = subprocess.run([program, "train", "job.yaml"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
        with open(os.path.join(folder, "run/metrics.jsonl"), encoding="utf-8") as file:
            seconds = [json.loads(line)["step_time_s"] for line in file]
        last = [os.path.join(folder, "run/checkpoints", name) for name in os.listdir(os.path.join(folder, "run/checkpoints"))]
        size = sum(os.path.getsize(os.path.join(at, name)) for at in last if os.path.isdir(at) for name in os.listdir(at))
    # The first ones pay for cold caches, and the first checkpoint for its memory.
    kept = list(enumerate(seconds))[2 * options.every:]
    beside = [s for k, s in kept if k % options.every == 0]
    others = [s for k, s in kept if k % options.every != 0]
    for name, pick in (("median", statistics.median), ("fastest", min)):
        print(f"{name}: {pick(beside) * 1e3:.0f} ms in the step after a checkpoint of {size / 1e6:.0f} MB, "
              f"{pick(others) * 1e3:.0f} ms in the others: {100 * (pick(beside) / pick(others) - 1):+.1f} %")


if __name__ == "__main__":
    main()
