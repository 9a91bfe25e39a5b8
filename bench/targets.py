"""The targets of `docs/performance.md` beside what was measured: (A) against pgBackRest of Debian at level 3, (L) against `limit`."""

import report

PGBACKREST = "pgbackrest"


class Row:
    """One line: a data set and phase, who is measured, and what its ratios may be at most (or at least)."""

    def __init__(self, title, data, phase, ours="pgkeep", a=None, l=None, bytes_=None, limit="limit", seconds=None, figure="wall_s", at_least=False):
        self.title, self.data, self.phase, self.ours, self.limit = title, data, phase, ours, limit
        self.a, self.l, self.bytes, self.seconds = a, l, bytes_, seconds
        self.figure, self.at_least = figure, at_least


ROWS = [
    Row("full, default level", "main", "full", a=0.30, l=1.15, bytes_=1.0),
    Row("full, level 3", "main", "full", ours="pgkeep:3", limit="limit:3", a=0.48, l=1.15, bytes_=1.0),
    Row("restore", "main", "restore", a=0.7, l=1.25),
    Row("delta restore, intact directory", "main", "delta", a=0.6),
    Row("incremental, nothing changed", "main", "unchanged", a=0.35, seconds=0.8),
    Row("incremental, 30 s of pgbench", "main", "pgbench", a=0.22, bytes_=0.18),
    Row("incremental, 100 MB appended", "main", "append", a=0.5, bytes_=1.0),
    Row("20,000 tables: full", "many", "full", a=0.35, l=1.5),
    Row("20,000 tables: nothing changed", "many", "unchanged", a=0.4),
    Row("WAL push of one segment", "main", "push", a=0.5, bytes_=1.0),
    Row("128 segments drained", "main", "drain", a=0.5),
    Row("replay through get (L: plain cp)", "main", "replay", l=0.9, limit="cp", figure="segments_per_s", at_least=True),
]
MEMORY_LIMIT = 96 * report.MIB
S3_RATIO, PUTS_PER_TIB, GETS_PER_TIB = 1.25, 60_000, 120_000


def table(results):
    """Each target with what the results have for it; a result says in its facts which data set it is of."""
    lines = [f"{'target':<34}{'(A)':>24}{'(L)':>24}{'bytes / (A)':>24}{'seconds':>22}"]
    for row in ROWS:
        samples = samples_of(results, row.data)
        ratio = lambda other, figure: report.median(report.ratios(samples, row.phase, row.ours, other, figure))  # noqa: E731, B023
        wall = report.median(report.values(samples, row.phase, row.ours, "wall_s"))
        cells = [
            judged(ratio(PGBACKREST, row.figure), row.a, row.at_least),
            judged(ratio(row.limit, row.figure), row.l, row.at_least),
            judged(ratio(PGBACKREST, "repository_bytes"), row.bytes),
        ]
        lines.append(f"{row.title:<34}" + "".join(f"{cell:>24}" for cell in cells) + f"{judged(wall, row.seconds, unit=' s'):>22}")
    return "\n".join([*lines, "", *memory(results), *s3(results)])


def samples_of(results, data):
    return [sample for result in results if result["facts"]["settings"]["data"] == data for sample in result["samples"]]


def judged(value, target, at_least=False, unit="x"):
    if value is None:
        return "-" if target is None else f"{'>=' if at_least else '<='} {target:g}: not measured"
    if target is None:
        return f"{value:.2f}{unit}"
    met = value >= target if at_least else value <= target
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
    return f"{shown}{unit} {'>=' if at_least else '<='} {target:,g}: {'met' if met else 'NOT MET'}"


def memory(results):
    """The largest sum of anonymous memory over the process tree that was seen in any phase."""
    lines = []
    for result in results:
        settings = result["facts"]["settings"]
        seen = [(s["peak_anonymous_bytes"], s["phase"], s["contender"]) for s in result["samples"] if s["contender"].startswith("pgkeep") and s.get("peak_anonymous_bytes")]
        if seen:
            peak, phase, label = max(seen)
            verdict = "met" if peak <= MEMORY_LIMIT else "NOT MET"
            lines.append(f"peak memory, {settings['data']}, {settings['processes']} workers: {peak / report.MIB:.0f} MiB ({label}, {phase}) <= 96 MiB: {verdict}")
    return lines


def s3(results):
    """S3 with its delay against the folder, and requests for each TiB stored."""
    lines = []
    for result in results:
        for phase in ("full", "restore"):
            samples = result["samples"]
            ratio = report.median(report.ratios(samples, phase, "pgkeep@s3", "pgkeep", "wall_s"))
            if ratio is not None:
                lines.append(f"S3 against the folder, {phase}: {judged(ratio, S3_RATIO)}")
            kind, target = ("PUT", PUTS_PER_TIB) if phase == "full" else ("GET", GETS_PER_TIB)
            rates = report.requests_per_tib(samples, "pgkeep@s3", phase, kind)
            if rates:
                lines.append(f"S3, {phase}, {kind} for each TiB stored: {judged(round(report.median(rates)), target, unit='')}")
    return lines
