#!/usr/bin/env python3
"""Experts specialise: which experts serve which kind of text.

One model is trained on four kinds of text at once (novels, Python, C headers, licences), then each kind is passed
through it by itself, with a learning rate of zero. Shown: the share of each kind's choices that every expert gets, by
layer, and the information in bits that an expert's number gives about the kind.
"""
import math
import pathlib

import study

BYTES = 700_000


def gather(pattern_list, limit):
    """Text of the files that match, a form feed between two, up to `limit` bytes."""
    parts, size = [], 0
    for folder, pattern in pattern_list:
        for path in sorted(pathlib.Path(folder).glob(pattern)):
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if "\0" in text or "\f" in text or len(text) < 1000:
                continue
            parts.append(text[:40_000])
            size += len(parts[-1])
            if size >= limit:
                return "\f".join(parts)
    return "\f".join(parts)


def texts(s):
    novel = pathlib.Path(s.options.text or study.ROOT / "runs/demo/austen.txt").read_text(encoding="utf-8")
    limit = 30_000 if s.quick else BYTES
    return {"novels": novel[:limit],
            "python": gather([("/usr/lib/python3.11", "*.py"), ("/usr/lib/python3", "**/*.py")], limit),
            "C headers": gather([("/usr/include", "*.h"), ("/usr/include/c++", "**/*.h")], limit),
            "licences": gather([("/usr/share/common-licenses", "*"), ("/usr/share/doc", "*/copyright")], limit)}


def information(shares):
    """Mutual information in bits of kind and expert, all kinds equally likely; shares[kind][expert]."""
    experts = len(shares[0])
    mean = [sum(kind[e] for kind in shares) / len(shares) for e in range(experts)]
    return sum(kind[e] / len(shares) * math.log2(kind[e] / mean[e])
               for kind in shares for e in range(experts) if kind[e] > 0)


def main():
    s = study.Study("domains", __doc__)
    kinds = texts(s)
    whole = s.folder / "all.txt"
    whole.write_text("\f".join(kinds.values()), encoding="utf-8")
    weights = s.folder / "weights"
    steps = {"train.steps": 500}
    s.train("training", {"data.text": str(whole), "checkpoint.folder": str(weights), "checkpoint.resume": "false",
                         "moe.balancing": "bias", "moe.bias_update_rate": 0.02, **steps})
    shares = {}
    for kind, text in kinds.items():
        path = s.folder / (kind.replace(" ", "-") + ".txt")
        path.write_text(text, encoding="utf-8")
        run = s.train(kind, {"data.text": str(path), "data.validation_fraction": 0, "train.steps": 12,
                             "train.lr": 1e-12, "train.min_lr": 0, "train.lr_warmup_steps": 0, "moe.balancing": "bias",
                             "moe.bias_update_rate": 1e-12}, extra=["--start-from", str(weights)])
        layers = len(run.steps[0]["layers"])
        loads = [[sum(step["layers"][l]["load"][e] for step in run.steps) for e in range(8)] for l in range(layers)]
        shares[kind] = [[n / sum(load) for n in load] for load in loads]
    for layer in range(len(next(iter(shares.values())))):
        print(study.table([f"layer {layer}"] + [f"expert {e}" for e in range(8)],
                          [[kind] + [f"{100 * x:.0f}%" for x in shares[kind][layer]] for kind in shares]))
        print(f"An expert's number tells {information([shares[k][layer] for k in shares]):.2f} bits of the kind of text "
              f"(at most {math.log2(len(shares)):.0f}).\n")
    s.write("domains.svg", study.heat_maps(
        [(f"Layer {layer}", list(shares), [shares[kind][layer] for kind in shares])
         for layer in range(len(next(iter(shares.values()))))], "expert"))


if __name__ == "__main__":
    main()
