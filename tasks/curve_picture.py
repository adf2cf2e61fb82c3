"""The training curves as a picture, for people, for MLflow's artifacts and for DVC's plots."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.curves import Rows

# Panel -> column -> its name in the legend.
PANELS = {
    "macro F1": {"val_f1_macro": "validation"},
    "loss": {"train_loss": "training", "val_loss": "validation"},
}
COLOURS = {"training": "#b3541e", "validation": "#4a7fc1"}  # those of the report
INCHES = (9.0, 5.5)
DPI = 100


def curves_png(candidate: str, head: Rows, tuned: Rows) -> bytes:
    """Draw the curves of both stages, each over epochs of its own, with the unfreezing marked.

    Args:
        candidate: its name, for the title.
        head: the rows of the first stage, the backbone frozen.
        tuned: those of the second; its epoch 0 is what the first handed on.

    Returns:
        a PNG file; equal curves give equal bytes.
    """
    stages = {"backbone frozen": head, "unfrozen": tuned}
    shown = {name: rows for name, rows in stages.items() if name != "unfrozen" or len(rows) > 1}
    figure = Figure(INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(candidate)
    grid = figure.subplots(len(PANELS), len(shown), sharex="col", sharey="row", squeeze=False)
    for axes, (panel, columns) in zip(grid, PANELS.items(), strict=True):
        axes[0].set_ylabel(panel)
        for axis, (stage, rows) in zip(axes, shown.items(), strict=True):
            for column, label in columns.items():
                known = [row for row in rows if row[column] is not None]
                x, y = [row["epoch"] for row in known], [row[column] for row in known]
                axis.plot(x, y, COLOURS[label], label=label, marker="." if len(x) < 20 else "")
            axis.grid(alpha=0.3)
            axis.xaxis.get_major_locator().set_params(integer=True)
            if stage == "unfrozen":
                axis.axvline(0, color="grey", linestyle="--", label="unfrozen here")
        axes[-1].legend()
    for axis, stage in zip(grid[0], shown, strict=True):
        axis.set_title(stage, fontsize="medium")
    for axis in grid[-1]:
        axis.set_xlabel("epoch")
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png", metadata={"Software": None})
    return file.getvalue()
