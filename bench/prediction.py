"""From a slope to what 1 TiB and 10 TiB would take, with the assumptions, as a piece of Markdown."""

GIB, TIB, MIB = 1 << 30, 1 << 40, 1 << 20
WISHES = {"full": "full backup", "nothing changed": "incremental, nothing changed", "restore": "restore"}


def fragment(result, lines):
    facts, points = result["facts"], result["points"]
    by_size = dict(lines(points, "size", "bytes", "wall_s", GIB))
    memory = dict(lines(points, "size", "bytes", "peak_anonymous_bytes", GIB, MIB))
    text = [
        f"Measured on {facts['machine']}; {facts['version']}, zstd level {facts['level']}, two workers, page cache warm, median of {facts['repeat']}.",
        "",
        "| | measured at most | a fixed part | for each GiB | each core, MiB/s | 1 TiB | 10 TiB | peak memory, smallest and largest size |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for phase, title in WISHES.items():
        largest, wall = by_size[phase][-1]
        held = f"{memory[phase][0][1]:.0f} and {memory[phase][-1][1]:.0f} MiB"
        measured = f"| {title} | {wall:.2f} s at {largest:.1f} GiB "
        if phase == "nothing changed":
            files = max(point["files"] for point in points)
            one, ten = (wall * max(files + gigabytes, 1) / files for gigabytes in (1024, 10240))
            text.append(f"{measured}| - | {wall / files * 1000:.2f} ms each file | - | {span(one)} | {span(ten)} | {held} |")
            continue
        fixed, each = line_through(by_size[phase])
        cpu = line_through(dict(lines(points, "size", "bytes", "cpu_s", GIB))[phase])[1]
        rate = f"{1024 / cpu:,.0f}" if cpu > 0 else "-"
        text.append(
            f"{measured}| {fixed:.2f} s | {each:.3f} s | {rate} | {span(fixed + each * 1024)} | {span(fixed + each * 10240)} | {held} |"
        )
    text += ["", *share_lines(lines, points), *worker_lines(lines, points), "", ASSUMPTIONS.strip(), ""]
    return "\n".join(text)


ASSUMPTIONS = """
The prediction is a straight line through the medians (least squares), on two cores of this machine. It assumes that

- the disk gives and takes what the two cores ask for: here files came from the page cache; a database larger than memory is read from
  disk, and where the disk is slower than the rate of all cores together, the disk decides;
- files are PostgreSQL's 1 GiB segments and their number grows with the size; many small tables cost by the file, not by the byte;
- the data compresses as the bench's does; zstd's speed follows the data;
- more cores are worth what the table of workers shows, until the disk or the network decides;
- a backup of nothing changed looks at each file's inode and reads none: all its time is laid to the files, which is too much, and each
  TiB adds 1,024 of them.
"""


def line_through(points):
    """(fixed part, slope) by least squares; neither below zero, for time is not."""
    count = len(points)
    if count < 2:
        return 0.0, points[0][1] / points[0][0]
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = max(sum((x - mean_x) * (y - mean_y) for x, y in points) / spread, 0.0)
    fixed = mean_y - slope * mean_x
    return (fixed, slope) if fixed >= 0 else (0.0, sum(x * y for x, y in points) / sum(x * x for x, _ in points))


def share_lines(lines, points):
    times = dict(lines(points, "share", "share", "wall_s")).get("incremental")
    if not times:
        return []
    added = dict(lines(points, "share", "share", "added_bytes", 1, MIB))["incremental"]
    cells = [f"{share:g} %: {wall:.2f} s, {bytes_:.1f} MiB added" for (share, wall), (_, bytes_) in zip(times, added, strict=True)]
    return ["Incremental by the share of pages that changed: " + "; ".join(cells) + "."]


def worker_lines(lines, points):
    found = lines(points, "workers", "workers", "wall_s")
    return [f"By workers, {name}: " + ", ".join(f"{workers:g}: {wall:.2f} s" for workers, wall in line) + "." for name, line in found]


def span(seconds):
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
