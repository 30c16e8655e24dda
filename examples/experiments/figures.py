"""How figures look: lines told apart without colour, plain axes, and a legend beside them, where no line is."""

import math

import matplotlib
from matplotlib.figure import Figure


# Okabe and Ito's colours, which nobody confuses.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = "os^vDPX*"
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 3)), (0, (1, 3)))
GREY = "#999999"
# Markers and dashes of N passes; any other N is drawn like the largest below it.
LOOKS = {1: "o:", 2: "s--", 3: ">-.", 4: "^-", 6: "<-.", 8: "D--", 16: "p-", 32: "h:"}


def figure(panels: int = 1, size: tuple[float, float] = (8.5, 4.2), **kwargs) -> tuple[Figure, object]:
    """An empty figure as wide as a page, and its axes (an array of them, if several)."""
    canvas = Figure(figsize=size, layout="constrained")
    return canvas, canvas.subplots(ncols=panels, **kwargs)


def line(axes, xs, ys, label: str | None, number: int, **kwargs):
    """A line with the colour, marker and dashes of this number; behind the last of these come the first again."""
    look = dict(color=COLOURS[number % 8], marker=MARKERS[number % 8], linestyle=DASHES[number % 8])
    look |= dict(markersize=5, linewidth=1.5)
    axes.plot(xs, ys, label=label, **look | kwargs)


def look_of_passes(passes: int) -> dict:
    """The look of N passes, the same in every figure: colour, marker and dashes."""
    look = LOOKS[max(n for n in LOOKS if n <= passes)]
    color = matplotlib.colormaps["viridis"](min(0.85, 0.17 * math.log2(passes)))  # dark enough on white
    return dict(color=color, marker=look[0], linestyle=look[1:], markersize=5)


def bars(axes, groups: list[str], sides: dict[str, list[float | None]], label: str):
    """Horizontal bars: for every group one per side, with hatches; None: there is none."""
    for number, (side, values) in enumerate(sides.items()):
        places = [i + 0.4 * (number - (len(sides) - 1) / 2) for i, value in enumerate(values) if value is not None]
        values = [value for value in values if value is not None]
        look = dict(color=COLOURS[number], edgecolor="white", hatch=("", "///", "..")[number])
        axes.barh(places, values, height=0.38, label=side, **look)
    axes.set_yticks(range(len(groups)), labels=groups)
    axes.invert_yaxis()
    finish(axes, xlabel=label)


def finish(axes, **labels):
    """A light grid, no box; `labels` as `Axes.set` takes them."""
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def legend(canvas: Figure, **kwargs):
    """Beside the axes, each label once, if there is any."""
    handles = [axes.get_legend_handles_labels() for axes in canvas.axes]
    named = {label: handle for pair in handles for handle, label in zip(*pair)}
    if named:
        look = dict(loc="outside right upper", frameon=False, fontsize=9)
        canvas.legend(named.values(), named.keys(), **look | kwargs)
