"""The table of `bench/receive`, and the targets of received WAL beside what was measured."""

from report import MIB, median, ratios, values
from targets import judged

MB = 1e6
COST = [("cpu_s_per_gb", "CPU s/GB", 1), ("sender_cpu_s_per_gb", "sender s/GB", 1), ("peak_anonymous_bytes", "anon MiB", MIB), ("stored_share", "stored/WAL", 1)]
# Phase: title, and its figures with heading and divisor.
PHASES = {
    "throughput": ("throughput under load", [
        ("written_bytes_per_s", "written MB/s", MB), ("received_bytes_per_s", "stored MB/s", MB), ("behind_bytes", "behind MB", MB),
        ("behind_s", "behind s", 1), *COST]),
    "catch-up": ("catch-up", [("received_bytes_per_s", "stored MB/s", MB), ("wall_s", "wall s", 1), *COST]),
    "lag": ("age of newest commit", [
        ("median_s", "median s", 1), ("p99_s", "p99 s", 1), ("max_s", "max s", 1), ("written_bytes_per_s", "written MB/s", MB),
        ("peak_anonymous_bytes", "anon MiB", MIB)]),
    "commit-1": ("commit, 1 client", [("median_ms", "median ms", 1), ("p99_ms", "p99 ms", 1), ("per_s", "commits/s", 1)]),
    "commit-8": ("commit, 8 clients", [("median_ms", "median ms", 1), ("p99_ms", "p99 ms", 1), ("per_s", "commits/s", 1)]),
    "backup": ("full backup", [
        ("wall_s", "wall s", 1), ("cpu_s", "CPU s", 1), ("peak_anonymous_bytes", "anon MiB", MIB), ("stored_bytes", "stored MiB", MIB)]),
}  # fmt: skip
# Ours, theirs, figure, phase, and what ours may be at most (or at least) of theirs.
RATIOS = [
    ("pgkeep", "pg_receivewal", "received_bytes_per_s", "catch-up", None, True),
    ("pgkeep", "pg_receivewal:lz4", "received_bytes_per_s", "catch-up", None, True),
    ("pgkeep@s3", "pgkeep", "received_bytes_per_s", "catch-up", None, True),
    ("pgkeep@link", "pg_receivewal@link", "received_bytes_per_s", "catch-up", None, True),
    ("pgkeep", "pg_receivewal:synchronous", "median_ms", "commit-1", None, False),
    ("pgkeep", "pg_receivewal:synchronous", "median_ms", "commit-8", None, False),
    ("pgkeep:sql@link", "pg_basebackup@link", "wall_s", "backup", 0.67, False),
    ("pgkeep:sql", "pg_basebackup", "wall_s", "backup", 0.67, False),
    ("pgkeep:sql@link", "pgkeep:local", "wall_s", "backup", 1.3, False),
    ("pgkeep:sql", "pgkeep:local", "wall_s", "backup", 1.3, False),
]
KEEP_UP, MEMORY, MEDIAN_S, P99_S, PUTS_PER_S = 150, 64, 1, 2, 1


def line(phase, label, figures):
    """What is said while it goes on: the first two figures."""
    title, columns = PHASES[phase]
    shown = [f"{heading} {figures[name] / divisor:.2f}" for name, heading, divisor in columns if name in figures][:2]
    return f"{title:<22} {label:<26} {', '.join(shown)}"


def text(result):
    known = result["facts"]
    head = [f"{known['when']}; {known['machine']}; {known['server']}; pgkeep at {known['commit']}", "; ".join(known["versions"]), str(known["settings"])]
    if "link" in known:
        link = known["link"]
        head.append(f"link: {link['kind']}, round trip {link['round_trip_s'] * 1000:.1f} ms, {link['bytes_per_s'] / MB:.0f} MB/s in one connection")
    return "\n".join([*head, *tables(result["samples"]), "", *requests(result["samples"]), *compared(result["samples"]), *targets(result["samples"])]) + "\n"


def tables(samples):
    lines = []
    for phase, (title, columns) in PHASES.items():
        labels = list(dict.fromkeys(s["contender"] for s in samples if s["phase"] == phase))
        if labels:
            lines += ["", f"{title:<28}" + "".join(f"{heading:>14}" for _, heading, _ in columns)]
        for label in labels:
            found = [median(values(samples, phase, label, name)) for name, _, _ in columns]
            cells = [f"{'-':>14}" if value is None else f"{value / divisor:>14.2f}" for value, (_, _, divisor) in zip(found, columns)]
            lines.append(f"{label:<28}" + "".join(cells))
    return lines


def requests(samples):
    lines = []
    for s in samples:
        if s.get("requests_per_s"):
            sent = f"; {s['sent_share']:.1f} bytes sent for each of WAL" if "sent_share" in s else ""
            lines.append(f"{s['phase']}, {s['contender']}, round {s['round']}, requests each second: {kinds(s['requests_per_s'], '.2f')}{sent}")
        if s.get("idle"):
            idle = s["idle"]
            lines.append(f"{s['contender']}, {idle['seconds']} s idle with {idle['written_bytes']} bytes of WAL: " + kinds(idle["requests"], "d"))
    return lines


def kinds(counts, form):
    return ", ".join(f"{kind} {counts[kind]:{form}}" for kind in ("PUT", "GET", "HEAD", "LIST", "DELETE"))


def compared(samples):
    lines = []
    for ours, theirs, figure, phase, target, at_least in RATIOS:
        value = median(ratios(samples, phase, ours, theirs, figure))
        if value is not None:
            lines.append(f"{PHASES[phase][0]}: {ours} / {theirs}, {figure}: {judged(value, target, at_least)}")
    return lines


def targets(samples):
    rate = lambda label, phase: median(values(samples, phase, label, "received_bytes_per_s"))  # noqa: E731
    lines = []
    for phase in ("throughput", "catch-up"):
        if rate("pgkeep", phase):
            lines.append(f"{PHASES[phase][0]}, to a folder: {judged(rate('pgkeep', phase) / MB, KEEP_UP, at_least=True, unit=' MB/s')}")
    memory = [s["peak_anonymous_bytes"] for s in samples if s["contender"].startswith("pgkeep") and s["phase"] in ("throughput", "catch-up", "lag")]
    if memory:
        lines.append(f"peak memory while receiving: {judged(max(memory) / MIB, MEMORY, unit=' MiB')}")
    for label in ("pgkeep", "pgkeep@s3"):
        for figure, target in (("median_s", MEDIAN_S), ("p99_s", P99_S)):
            found = median(values(samples, "lag", label, figure))
            if found is not None:
                lines.append(f"age of the newest stored commit, {label}, {figure[:-2]}: {judged(found, target, unit=' s')}")
    puts = [s["requests_per_s"]["PUT"] for s in samples if s["phase"] == "lag" and s.get("requests_per_s")]
    if puts:
        lines.append(f"PUT each second: {judged(max(puts), PUTS_PER_S, unit='')}")
    idle = [s["idle"]["requests"]["PUT"] for s in samples if s.get("idle") and not s["idle"]["written_bytes"]]
    if idle:
        lines.append(f"PUT while idle: {judged(max(idle), 0, unit='')}")
    return lines
