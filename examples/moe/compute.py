#!/usr/bin/env python3
"""Dense against MoE at equal training compute, on the same text, 1,000 steps at a learning rate of 0.001.

The dense model's MLP is as wide as the two experts a token of the mixture uses: both spend the same FLOPs on a token.
Shown: loss against training FLOPs, and how few of them the mixture needs to reach the dense model's last loss.
"""
import study


def flops(run):
    """Model FLOPs done after each step."""
    total, out = 0.0, []
    for step in run.steps:
        total += step["model_flops"]
        out.append(total)
    return out


def main():
    s = study.Study("compute", __doc__)
    common = {"train.steps": 1000, "train.lr": 1e-3, "train.min_lr": 1e-4}
    dense = s.train("dense", common, job=study.JOB.parent / "dense.yaml")
    moe = s.train("moe", {**common, "moe.aux_loss_coef": 0.1, "moe.z_loss_coef": 0.001})
    chart = study.Chart("Training loss against compute", "training FLOPs, 10^12", "nats per token")
    for run in (dense, moe):
        chart.line(run.label, [f / 1e12 for f in flops(run)], study.smooth(run.series("loss")))
    s.write("compute.svg", study.page([chart], width=620, height=340))
    goal = dense.last(dense.series("loss"))
    smooth = study.smooth(moe.series("loss"), 21)
    reached = next((f for f, loss in zip(flops(moe), smooth) if loss <= goal), float("nan"))
    print(study.table(["model", "training FLOPs", "training loss", "validation loss"],
                      [(run.label, f"{flops(run)[-1]:.3g}", f"{run.last(run.series('loss')):.3f}",
                        f"{run.validation():.3f}") for run in (dense, moe)]))
    if reached != reached:
        print(f"The mixture does not reach the dense model's last training loss, {goal:.3f}.")
        return
    print(f"The mixture reaches the dense model's last training loss, {goal:.3f}, after {reached:.3g} FLOPs: "
          f"{100 * reached / flops(dense)[-1]:.0f} % of the dense model's.")


if __name__ == "__main__":
    main()
