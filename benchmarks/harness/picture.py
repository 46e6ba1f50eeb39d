"""The results as a picture: requests per second over the number of clients, one panel for each model and way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.comparison import Row


def draw(rows: Sequence[Row], peers: Sequence[str], path: Path) -> None:
    """Writes a PNG. Bars are medians; the thin line spans the rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.runs:
            panels.setdefault((row.case.model.name, f"{row.case.way}, {row.case.generator}"), []).append(row)
    if not panels:
        return
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.4 * lines), squeeze=False)
    colours = {peer: f"C{i}" for i, peer in enumerate(peers)}
    for axis, ((model, way), shown) in zip(axes.flat, panels.items(), strict=False):
        present = [peer for peer in peers if any(row.runs.get(peer) for row in shown)]
        width = 0.8 / max(1, len(present))
        for i, peer in enumerate(present):
            for x, row in enumerate(shown):
                runs = [run.requests_per_second for run in row.runs.get(peer, [])]
                median = row.median(peer)
                if median is None:
                    continue
                place = x + (i - (len(present) - 1) / 2) * width
                axis.bar(place, median.requests_per_second, width, color=colours[peer])
                axis.vlines(place, min(runs), max(runs), color="black", linewidth=1)
        axis.set_title(f"{model}: {way}", fontsize=10)
        axis.set_xticks(range(len(shown)), [str(row.case.concurrency) for row in shown])
        axis.set_yscale("log")
        axis.grid(axis="y", alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("requests/s")
    for axis in axes[-1, :]:
        axis.set_xlabel("clients")
    figure.legend(
        handles=[plt.Rectangle((0, 0), 1, 1, color=colours[peer], label=peer) for peer in peers], loc="upper center", ncols=len(peers)
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / (3.4 * lines)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
