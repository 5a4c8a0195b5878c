"""Figures of training: loss and accuracy against epochs or steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nbsupport import checks, intervals
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Floats, Values
from nbsupport.plots.style import BLACK, examples_style, figure, house_style, in_order

_ACCURACIES = {"benign_accuracy": ("benign", "benign"), "pgd_accuracy": ("under PGD", "PGD")}


def training_curves(
    histories: Mapping[str, pd.DataFrame],
    *,
    n_validation: int | None = None,
    best: Mapping[str, int] | None = None,
) -> Figure:
    """Return accuracy (above) and loss (below) against the epoch, a column for each model.

    Parameters
    ----------
    histories
        Model -> table with the columns epoch, loss, benign_accuracy, pgd_accuracy (NaN: not measured).
    n_validation
        Size of the validation part; adds Wilson's 95 % interval of each accuracy.
    best
        Model -> the epoch whose weights were kept, drawn as a vertical line.

    Raises
    ------
    ValueError
        For no model, an empty history or a missing column.
    """
    arrays.not_empty(histories, name="histories")
    if n_validation is not None:
        checks.count(n_validation, name="n_validation")
    with house_style():
        fig = figure(5.2)
        axes = fig.subplots(2, len(histories), sharex="col", sharey="row", squeeze=False, height_ratios=[3, 2])
        for column, (model, history) in enumerate(histories.items()):
            arrays.columns(history, ["epoch", "loss", *_ACCURACIES], name=f"the history of {model}")
            upper, lower = axes[:, column]
            epoch = history["epoch"].to_numpy(float)
            for name, (label, examples) in _ACCURACIES.items():
                _accuracy(upper, epoch, history[name].to_numpy(float), label, examples, n_validation)
            lower.plot(epoch, history["loss"].to_numpy(float), color=BLACK, marker=".", label="training loss")
            for ax in (upper, lower):
                if best is not None and model in best:
                    ax.axvline(best[model], color="0.4", linestyle=":", label=f"epoch {best[model]}, kept")
            upper.set(title=f"{model} model", ylim=(-0.02, 1.02))
            upper.yaxis.set_major_formatter(PercentFormatter(1.0))
            lower.set(xlabel="epoch")
            lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            upper.legend(loc="best", framealpha=0.9)
        size = "" if n_validation is None else f"\n(n={n_validation}, 95 % interval)"
        axes[1, 0].set_ylim(0, 1.08 * max(float(history["loss"].max()) for history in histories.values()))
        axes[0, 0].set_ylabel(f"validation accuracy{size}")
        axes[1, 0].set_ylabel("training loss (nats)")
    return fig


def detector_training(histories: Mapping[str, Values], *, window: int | None = None) -> Figure:
    """Return the training loss of the detector, a line for each set of examples that it is trained on.

    Parameters
    ----------
    histories
        Trained_on -> (steps,) the loss at every step.
    window
        The line is the mean over this many steps, the pale one every step; None: a fiftieth of the steps.

    Raises
    ------
    ValueError
        For no history, an empty one, or one of another shape.
    """
    arrays.not_empty(histories, name="histories")
    with house_style():
        fig = figure(4.0)
        ax = fig.subplots()
        for name in in_order(histories):
            loss = arrays.floats(histories[name], name=f"the history of {name}", shape=("steps",))
            checks.count(len(loss), name=f"the steps in the history of {name}")
            window = max(1, len(loss) // 50) if window is None else window
            checks.count(window, name="window")
            width = min(window, len(loss))
            ends = np.arange(width, len(loss) + 1)
            total = np.concatenate([[0.0], np.cumsum(loss)])
            smooth = (total[ends] - total[ends - width]) / width
            every = (len(ends) // 20, max(1, len(ends) // 8))
            style = examples_style(name) | {"markersize": 4.5, "markevery": every, "linewidth": 1.5}
            ax.plot(np.arange(1, len(loss) + 1), loss, color=style["color"], alpha=0.2, linewidth=0.8, label="_steps")
            ax.plot(ends, smooth, label=name, **style)
        mean = "" if window == 1 else f", mean of {window} steps"
        ax.axhline(np.log(2), color="0.4", linestyle=":", linewidth=1.2, label="chance, ln 2")
        ax.set(xlabel="optimiser step", ylabel=f"training loss (nats){mean}", ylim=(0, None))
        ax.set_title("Training of the detector")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, title="trained on")
    return fig


def _accuracy(ax: Axes, epoch: Floats, value: Floats, label: str, examples: str, n: int | None) -> None:
    """Draw one accuracy with Wilson's interval; epochs without a measurement are left out."""
    known = np.isfinite(value)
    epoch, value = epoch[known], value[known]
    last = f" (last {100 * value[-1]:.1f} %)" if len(value) else " (not measured)"
    style = examples_style(examples)
    ax.plot(epoch, value, markersize=3.5, label=label + last, **style)
    if n is not None and len(value):
        rates = [intervals.wilson(round(accuracy * n), n) for accuracy in value]
        ax.fill_between(
            epoch, [r.low for r in rates], [r.high for r in rates], color=style["color"], alpha=0.2, linewidth=0
        )
