"""Tables, axes by number of tokens, and the pages that show them."""

from matplotlib.ticker import LogLocator

from modeling_sleep.markdown_table import markdown_table

from .. import figures
from .bench import Row, named, short


def grid(corner: str, head: list[str], rows: dict[str, list[str]]) -> str:
    """A Markdown table with a line per entry of `rows`."""
    return markdown_table([corner, *head], ([name, *cells] for name, cells in rows.items()))


def comparisons(rows: list[Row]) -> str:
    """The rows as a Markdown table without empty columns; sizes that all of them have are said once."""
    columns = {
        "measurement": [row.measurement for row in rows],
        "sizes": [row.setting for row in rows],
        "target": [row.goal for row in rows],
        "ratio": [f"{row.ratio:.3f}" for row in rows],
        "quartiles": [row.quartiles and "{:.3f} – {:.3f}".format(*row.quartiles) for row in rows],
        "": [row.verdict if row.goal else "" for row in rows],
        "in absolute terms": [row.absolute for row in rows],
    }
    common = set(columns["sizes"]) if len(rows) > 1 else ()
    if len(common) == 1:
        columns.pop("sizes")
    shown = {head: [cell or "" for cell in cells] for head, cells in columns.items() if any(cells)}
    align = "".join("r" if head in ("target", "ratio", "quartiles") else "l" for head in shown)
    table = markdown_table(list(shown), zip(*shown.values()), align)
    return f"All with {common.pop()}:\n\n{table}" if len(common) == 1 else table


def finish(axes, xlabel: str, ylabel: str, tokens: list[int], title: str = "") -> None:
    """Logarithmic axes with numbers of tokens as they are spoken of."""
    figures.finish(axes, xlabel=xlabel, ylabel=ylabel, title=title, xscale="log", yscale="log")
    axes.set_xticks(tokens, labels=[named(x) for x in tokens])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: short(y))


def section_page(name: str, section, result: dict) -> str:
    """Its docstring, plot and tables, then the targets and the comparisons without one."""
    about, rows = result["about"], [Row.read(row) for row in result["rows"]]
    targets, others = ([row for row in rows if (row.target is None) == none] for none in (False, True))
    parts = [f"# {section.TITLE}", section.__doc__.strip()]
    parts += [f"{about['machine']}; {about['versions']}; {about['seconds']} s.", f"![{section.TITLE}]({name}.png)"]
    parts += [section.tables(result["data"])]
    parts += ["## Targets", comparisons(targets)] if targets else []
    parts += ["## Comparisons without a target", comparisons(others)] if others else []
    return "\n\n".join(part for part in parts if part) + "\n"


def pages(devices: dict[str, dict[str, dict]], sections: dict) -> dict[str, str]:
    """
    All that has been measured: a page per section and device, and before them one that says which targets are met.

    Parameters
    ----------
    devices : dict[str, dict[str, dict]]
        Per folder of a device, what stands in the JSON of every section.
    sections : dict[str, module]
        The modules of the sections, for their docstrings and tables.

    Returns
    -------
    dict[str, str]
        By the pages' paths within the folder of the results.
    """
    found = {}
    front = [
        "# Speed and memory",
        "What `make bench` (`python -m examples.experiments.benchmarks.run`) measured, as committed. A ratio is the "
        "median over rounds in which both sides took turns, given with its quartiles. The targets are ours, none is "
        "the paper's.",
    ]
    for folder, results in devices.items():
        lines, missed = [], []
        for name, result in results.items():
            found[f"{folder}/{name}.md"] = section_page(name, sections[name], result)
            targets = [row for row in map(Row.read, result["rows"]) if row.target is not None]
            misses = [row for row in targets if row.verdict != "met"]
            lines.append((f"[{sections[name].TITLE}]({folder}/{name}.md)", len(targets), len(targets) - len(misses)))
            missed += misses
        front += [f"## {next(iter(results.values()))['about']['machine']}"]
        front += [markdown_table(("section", "targets", "met"), lines)]
        front += ["Not met:", comparisons(missed)] if missed else []
    return {"README.md": "\n\n".join(front) + "\n", **found}
