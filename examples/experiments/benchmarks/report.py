"""Tables, axes by number of tokens, and the page that shows them."""

from matplotlib.ticker import LogLocator

from .. import figures
from .bench import Row, named, short


def grid(corner: str, head: list[str], rows: dict[str, list[str]]) -> str:
    """A Markdown table with a line per entry of `rows`."""
    lines = [f"| {corner} | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines)


def comparisons(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| measurement | sizes | target | ratio | quartiles | | in absolute terms |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        quartiles = "" if row.quartiles is None else "{:.3f} – {:.3f}".format(*row.quartiles)
        cells = (row.measurement, row.setting, row.goal, f"{row.ratio:.3f}", quartiles, row.verdict, row.absolute)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finish(axes, xlabel: str, ylabel: str, tokens: list[int], title: str = "") -> None:
    """Logarithmic axes with numbers of tokens as they are spoken of."""
    figures.finish(axes, xlabel=xlabel, ylabel=ylabel, title=title, xscale="log", yscale="log")
    axes.set_xticks(tokens, labels=[named(x) for x in tokens])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: short(y))


def page(devices: dict[str, dict[str, dict]], sections: dict) -> str:
    """
    All that has been measured, the targets first.

    Parameters
    ----------
    devices : dict[str, dict[str, dict]]
        Per folder of a device, what stands in the JSON of every section.
    sections : dict[str, module]
        The modules of the sections, for their docstrings and tables.
    """
    parts = [
        "# Speed and memory",
        "What `make bench` (`python -m examples.experiments.benchmarks.run`) measured, as committed.",
    ]
    for folder, found in devices.items():
        rows = {name: [Row.read(row) for row in result["rows"]] for name, result in found.items()}
        parts.append(f"## {next(iter(found.values()))['about']['machine']}")
        targets = [row for name in found for row in rows[name] if row.target is not None]
        met = sum(row.verdict == "met" for row in targets)
        parts += [
            "A ratio is the median over rounds in which both sides took turns, given with its quartiles. "
            f"The targets are ours, none is the paper's; {met} of {len(targets)} are met.",
            comparisons(targets),
        ]
        for name, result in found.items():
            module, about = sections[name], result["about"]
            text = module.__doc__.strip()
            parts += [f"### {module.TITLE}", text, f"{about['machine']}; {about['versions']}; {about['seconds']} s."]
            parts += [f"![{module.TITLE}]({folder}/{name}.png)", module.tables(result["data"])]
            if others := [row for row in rows[name] if row.target is None]:
                parts += ["Comparisons without a target:", comparisons(others)]
    return "\n\n".join(part for part in parts if part) + "\n"
