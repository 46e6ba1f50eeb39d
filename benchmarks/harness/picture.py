"""Draws the results: requests per second by number of clients, with a panel per model and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.comparison import Row

#: The name of the peer that runs the model without a server.
CEILING = "in-process"


def draw(rows: Sequence[Row], peers: Sequence[str], path: Path) -> None:
    """Writes a PNG file, in which bars are medians and thin lines span the rounds."""
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
        medians = {
            (peer, x): median
            for peer in peers
            for x, row in enumerate(shown)
            if (median := row.median(peer)) is not None
        }
        served = max(
            [median.requests_per_second for (peer, _), median in medians.items() if peer != CEILING],
            default=0.0,
        )
        # A ceiling far above the servers would flatten their bars, so it is printed in the title instead.
        ceiling = max(
            [median.requests_per_second for (peer, _), median in medians.items() if peer == CEILING],
            default=0.0,
        )
        hidden = {CEILING} if served and ceiling > 2 * served else set()
        present = [peer for peer in peers if peer not in hidden and any(name == peer for name, _ in medians)]
        width = 0.8 / max(1, len(present))
        for (peer, x), median in medians.items():
            if peer in hidden:
                continue
            place = x + (present.index(peer) - (len(present) - 1) / 2) * width
            rates = [run.requests_per_second for run in shown[x].runs[peer]]
            axis.bar(place, median.requests_per_second, width, color=colours[peer])
            axis.vlines(place, min(rates), max(rates), color="black", linewidth=1)
            axis.annotate(
                f"{median.requests_per_second:,.0f}",
                (place, max(rates)),
                ha="center",
                va="bottom",
                fontsize=6,
            )
        axis.set_title(f"{model}: {way}" + (f"\n({CEILING}: {ceiling:,.0f}/s)" if hidden else ""), fontsize=9)
        axis.set_xticks(range(len(shown)), [str(row.case.concurrency) for row in shown])
        axis.margins(y=0.12)
        axis.grid(axis="y", alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("requests/s")
    for axis in axes[-1, :]:
        axis.set_xlabel("clients")
    patches = [plt.Rectangle((0, 0), 1, 1, color=colours[peer], label=peer) for peer in peers]
    figure.legend(handles=patches, loc="upper center", ncols=max(1, len(peers)))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / (3.4 * lines)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
