#!/usr/bin/env python3
"""Capacity factor against drop rate and loss.

Capacity bounds the rows an expert computes, so the slowest rank; what exceeds it is dropped and passes the residual
stream only. One run a factor, by position and by probability; dropless (factor 0) beside them.
"""
import study

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def main():
    s = study.Study("capacity", __doc__)
    dropless = s.train("dropless", {"moe.capacity_factor": 0.0})
    charts = [study.Chart("Dropped choices, last 20 steps", "capacity factor", "share"),
              study.Chart("Validation loss", "capacity factor", "nats per token")]
    rows = [("dropless", "0.0%", f"{dropless.last(dropless.series('loss')):.3f}", f"{dropless.validation():.3f}")]
    factors = FACTORS[::3] if s.quick else FACTORS
    for policy in ("position", "probs"):
        runs = [s.train(f"{policy}-{f:g}", {"moe.capacity_factor": f, "moe.drop_policy": policy}) for f in factors]
        dropped = [run.last(run.layers("drop_rate")) for run in runs]
        charts[0].line(f"by {policy}", factors, dropped, marks=True)
        charts[1].line(f"by {policy}", factors, [run.validation() for run in runs], marks=True)
        rows += [(run.label, f"{100 * d:.1f}%", f"{run.last(run.series('loss')):.3f}", f"{run.validation():.3f}")
                 for run, d in zip(runs, dropped)]
    charts[1].line("dropless", [factors[0], factors[-1]], [dropless.validation()] * 2, dashed=True)
    s.write("capacity.svg", study.page(charts))
    print(study.table(["capacity", "dropped", "training loss", "validation loss"], rows))


if __name__ == "__main__":
    main()
