#!/usr/bin/env python3
"""The balancing coefficient from too little to too much: load against quality.

Too small a coefficient leaves experts idle, too large a one drowns the language model's own loss. One run a
coefficient of the balancing loss; shown: load of the busiest expert, and loss on text that was held back.
"""
import study

COEFFICIENTS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)


def main():
    s = study.Study("balance", __doc__)
    runs = [s.train(f"{c:g}", {"moe.balancing": "loss", "moe.aux_loss_coef": c})
            for c in (COEFFICIENTS[1::2] if s.quick else COEFFICIENTS)]
    xs = [float(run.label) for run in runs]
    load = study.Chart("Busiest expert, last 20 steps", "coefficient", "load, max / mean", x_log=True)
    loss = study.Chart("Validation loss", "coefficient", "nats per token", x_log=True)
    load.line("", xs, [run.last(run.layers("load_max_over_mean")) for run in runs], marks=True)
    loss.line("", xs, [run.validation() for run in runs], marks=True)
    s.write("balance.svg", study.page([load, loss]))
    print(study.table(["coefficient", "max / mean", "router entropy, nats", "training loss", "validation loss"],
                      [(run.label, f"{run.last(run.layers('load_max_over_mean')):.2f}",
                        f"{run.last(run.layers('router_entropy_nats')):.2f}", f"{run.last(run.series('loss')):.3f}",
                        f"{run.validation():.3f}") for run in runs]))


if __name__ == "__main__":
    main()
