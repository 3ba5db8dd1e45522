#!/usr/bin/env python3
"""Routing collapse: without balancing a few experts take all tokens; a loss or a bias cures it.

Three runs of the same job that differ in moe.balancing: none, loss, bias. Shown: the busiest expert against the average, the
effective number of experts (exp of the entropy of the load), the training loss, and what Tessera warned of, and when.
"""
import math

import study


def effective(run):
    """Mean over layers of exp(entropy of the load), by step."""
    def of(load):
        total = sum(load)
        return math.exp(-sum(n / total * math.log(n / total) for n in load if n))
    return [sum(of(layer["load"]) for layer in step["layers"]) / len(step["layers"]) for step in run.steps]


def main():
    s = study.Study("collapse", __doc__)
    runs = [s.train("none", {"moe.balancing": "none"}),
            s.train("loss", {"moe.balancing": "loss", "moe.aux_loss_coef": 0.05}),
            s.train("bias", {"moe.balancing": "bias", "moe.bias_update_rate": 0.03})]
    load = study.Chart("Busiest expert, mean of layers", "step", "load, max / mean")
    experts = study.Chart("Effective number of experts, of 8", "step", "exp(entropy of the load)")
    loss = study.Chart("Training loss", "step", "nats per token")
    for run in runs:
        steps = run.series("step")
        load.line(run.label, steps, study.smooth(run.layers("load_max_over_mean")))
        experts.line(run.label, steps, study.smooth(effective(run)))
        loss.line(run.label, steps, study.smooth(run.series("loss")))
    s.write("collapse.svg", study.page([load, experts, loss]))
    rows = [(run.label, f"{run.last(run.layers('load_max_over_mean')):.2f}", f"{run.last(effective(run)):.2f}",
             f"{run.last(run.layers('dead_experts')):.1f}", f"{run.last(run.series('loss')):.3f}",
             f"{run.validation():.3f}") for run in runs]
    print(study.table(["balancing", "max / mean", "effective experts", "dead a layer", "loss", "validation"], rows))
    for run in runs:
        for step, text in run.warnings():
            print(f"{run.label}, step {step}: {text}")


if __name__ == "__main__":
    main()
