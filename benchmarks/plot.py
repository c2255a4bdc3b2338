"""A roofline picture of a run."""

from pathlib import Path
from typing import Any

from benchmarks.problems import CELLS, FORWARD, TRAINING, WORKS, Problem
from benchmarks.report import Point, points
from benchmarks.systems import OURS

ASIDE = 1.07  # a factor of x from cell to cell, so that they do not hide each other


def intensity(point: Point, dtype: str) -> float:
    """Return the operations for each byte of w_hh that is read, once a step forward and once backward."""
    T, B, I, H = map(int, point.shape.split(","))
    reads = T if point.work == FORWARD else 2 * T
    return point.flops / (reads * Problem(point.cell, T, B, I, H, dtype).w_hh_bytes)


def roofline(data: dict[str, Any], path: Path) -> None:
    """Draw our speed (full) above or below the fastest peer's (hollow), under what the machine allows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    measured = [point for point in points(data) if point.work in (FORWARD, TRAINING)]
    works = [work for work in (FORWARD, TRAINING) if any(point.work == work for point in measured)]
    limits, dtype = data["limits"], data["dtype"]
    peak = limits["peak"] * 1e-9
    xs = [intensity(point, dtype) for point in measured]
    lowest = min((point.gflops / max(1, point.to_best or 1) for point in measured), default=1)
    low, high = min(xs, default=1) / 4, max(xs, default=1) * 2

    figure = Figure(figsize=(6 * max(len(works), 1), 4.6), layout="constrained")
    panels = figure.subplots(1, max(len(works), 1), sharey=True, squeeze=False)[0]
    for panel, work in zip(panels, works, strict=False):
        for level in limits["levels"]:
            bandwidth = level["bandwidth"] * 1e-9
            knee = peak / bandwidth
            panel.plot(
                [low, max(low, knee)], [bandwidth * low, max(bandwidth * low, peak)], color="0.75", lw=1, zorder=0
            )
            panel.annotate(f" {level['name']} {bandwidth:.0f} GB/s", (low, bandwidth * low), fontsize=7, color="0.4")
        panel.axhline(peak, color="0.3", lw=1, zorder=0)
        panel.annotate(f"peak {peak:.0f} GFLOP/s", (high, peak), fontsize=7, color="0.3", ha="right", va="bottom")
        for k, cell in enumerate(CELLS):
            colour = f"C{k}"
            group = [point for point in measured if (point.cell, point.work) == (cell, work)]
            x = [ASIDE ** (k - 1) * intensity(point, dtype) for point in group]
            ours = [point.gflops for point in group]
            theirs = [point.gflops / point.to_best if point.to_best else point.gflops for point in group]
            panel.vlines(x, theirs, ours, color=colour, lw=0.8, alpha=0.6)
            panel.scatter(x, theirs, s=22, facecolors="white", edgecolors=colour)
            panel.scatter(x, ours, s=22, color=colour, label=cell)
        panel.set(title=WORKS[work], xscale="log", yscale="log", xlim=(low, high), ylim=(lowest / 1.5, peak * 1.5))
        panel.set_xlabel("operations per byte of w_hh that is read")
    panels[0].set_ylabel("GFLOP/s")
    panels[0].legend(title=f"{OURS}, full;\nits fastest peer, hollow", fontsize=8, title_fontsize=8, loc="lower right")
    with mpl.rc_context({"svg.hashsalt": "0"}):
        figure.savefig(path, dpi=150)
