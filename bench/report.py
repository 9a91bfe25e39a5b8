"""The table of a benchmark: medians of each figure, and the median of the ratios within each round."""

import statistics

from contenders import PHASES, TOOLS, parse

MIB = 1024 * 1024
TIB = MIB * MIB
FIGURES = [  # name in the samples, heading, divisor
    ("wall_s", "wall s", 1),
    ("segments_per_s", "segments/s", 1),
    ("cpu_s", "CPU s", 1),
    ("peak_rss_bytes", "RSS MiB", MIB),
    ("peak_anonymous_bytes", "anon MiB", MIB),
    ("repository_bytes", "added MiB", MIB),
]
KINDS = ("PUT", "GET", "HEAD", "LIST", "DELETE")


def table(samples, contenders):
    """`samples` are dictionaries with `round`, `contender`, `phase` and the figures; `contenders` are labels."""
    width = max(len(title) for title in PHASES.values())
    lines = [f"{'phase':<{width}}  {'':<24}" + "".join(f"{heading:>12}" for _, heading, _ in FIGURES)]
    for phase, title in PHASES.items():
        here = [label for label in contenders if values(samples, phase, label, "wall_s")]
        if here and "pgkeep" in contenders and "pgkeep" not in here:
            here.insert(0, "pgkeep")  # it has no such command yet
        for label in here:
            cells = [cell(median(values(samples, phase, label, name)), divisor) for name, _, divisor in FIGURES]
            lines.append(f"{title:<{width}}  {label:<24}" + "".join(cells))
        for ours, theirs in compared(here):
            cells = [ratio_cell(median(ratios(samples, phase, ours, theirs, name))) for name, _, _ in FIGURES]
            lines.append(f"{'':<{width}}  {ours + ' / ' + theirs:<24}" + "".join(cells))
    return "\n".join(lines + requests(samples, contenders))


def compared(labels):
    """The pairs worth a ratio: pgkeep with everybody else, and with `limit` at its own level; and each store with the folder."""
    for ours in labels:
        for theirs in labels:
            (tool, level, store), (other, other_level, other_store) = parse(ours), parse(theirs)
            same_level = (level or TOOLS[tool].level) == (other_level or TOOLS[other].level)
            if tool == other:
                if same_level and store != "folder" and other_store == "folder":
                    yield ours, theirs
            elif tool == "pgkeep" and (other != "limit" or same_level) and (store == other_store or other in ("limit", "cp")):
                yield ours, theirs


def requests(samples, contenders):
    """Requests to the S3 server by kind, and what they would be for a TiB stored."""
    lines = []
    for phase, title in PHASES.items():
        for label in contenders:
            found = [s for s in samples if s["phase"] == phase and s["contender"] == label and s.get("requests")]
            if not found:
                continue
            counts = {kind: median([s["requests"].get(kind, 0) for s in found]) for kind in KINDS}
            line = f"{title:<30} {label:<16} " + " ".join(f"{kind} {count:g}" for kind, count in counts.items())
            rates = {kind: requests_per_tib(samples, label, phase, kind) for kind in ("PUT", "GET")}
            if all(rates.values()):
                line += "; for each TiB stored " + ", ".join(f"{kind} {median(found):,.0f}" for kind, found in rates.items())
            lines.append(line)
    return ["", "requests"] + lines if lines else []


def requests_per_tib(samples, label, phase, kind):
    """In each round, what a full backup or a restore of a TiB stored would ask for. What an incremental with nothing changed
    asks for is taken off a full backup: it does not grow with the bytes."""
    rates = []
    for s in samples:
        if s["contender"] == label and s["phase"] == phase and phase in ("full", "restore") and s.get("requests"):
            same = [o for o in samples if o["contender"] == label and o["round"] == s["round"] and o["phase"] == "unchanged"]
            fixed = same[0]["requests"].get(kind, 0) if same and phase == "full" else 0
            rates.append(max(s["requests"].get(kind, 0) - fixed, 0) * TIB / s["stored_bytes"])
    return rates


def values(samples, phase, label, name):
    return [s[name] for s in samples if s["phase"] == phase and s["contender"] == label and s.get(name) is not None]


def ratios(samples, phase, label, other, name):
    """The figure of `label` over that of `other`, for each round in which both have it."""
    found = []
    for round_ in sorted({s["round"] for s in samples}):
        mine = [s for s in samples if s["round"] == round_]
        ours, theirs = median(values(mine, phase, label, name)), median(values(mine, phase, other, name))
        if ours is not None and theirs:
            found.append(ours / theirs)
    return found


def median(numbers):
    return statistics.median(numbers) if numbers else None


def cell(value, divisor):
    return f"{'-':>12}" if value is None else f"{value / divisor:>12.2f}"


def ratio_cell(value):
    return f"{'-':>12}" if value is None else f"{value:>11.2f}x"
