"""The table of a benchmark: medians of each figure, and the median of the ratios within each round."""

import statistics

MIB = 1024 * 1024
FIGURES = [  # name in the samples, heading, divisor
    ("wall_s", "wall s", 1),
    ("cpu_s", "CPU s", 1),
    ("peak_rss_bytes", "RSS MiB", MIB),
    ("peak_anonymous_bytes", "anon MiB", MIB),
    ("repository_bytes", "stored MiB", MIB),
]


def table(samples, phases, tools):
    """`samples` are dictionaries with `round`, `tool`, `phase` and the figures."""
    width = max(len(phase) for phase in phases)
    lines = [f"{'phase':<{width}}  {'tool':<22}" + "".join(f"{heading:>12}" for _, heading, _ in FIGURES)]
    for phase in phases:
        for tool in tools:
            cells = [cell(median(values(samples, phase, tool, name)), divisor) for name, _, divisor in FIGURES]
            lines.append(f"{phase:<{width}}  {tool:<22}" + "".join(cells))
        for tool in tools[1:]:
            cells = [ratio_cell(median(ratios(samples, phase, tools[0], tool, name))) for name, _, _ in FIGURES]
            lines.append(f"{'':<{width}}  {tools[0] + ' / ' + tool:<22}" + "".join(cells))
    return "\n".join(lines)


def values(samples, phase, tool, name):
    return [s[name] for s in samples if s["phase"] == phase and s["tool"] == tool and s[name] is not None]


def ratios(samples, phase, tool, other, name):
    """The figure of `tool` over that of `other`, for each round in which both have it."""
    found = []
    for round_ in sorted({s["round"] for s in samples}):
        mine = [s for s in samples if s["round"] == round_]
        ours, theirs = values(mine, phase, tool, name), values(mine, phase, other, name)
        if ours and theirs and theirs[0]:
            found.append(ours[0] / theirs[0])
    return found


def median(numbers):
    return statistics.median(numbers) if numbers else None


def cell(value, divisor):
    return f"{'-':>12}" if value is None else f"{value / divisor:>12.2f}"


def ratio_cell(value):
    return f"{'-':>12}" if value is None else f"{value:>11.2f}x"
