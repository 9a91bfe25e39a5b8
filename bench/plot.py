"""Line charts as SVG, made with the standard library: axes with round numbers, units, a title and a legend."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 68, 20, 64, 52
LIMIT = " (limit)"  # such a line is dashed, in the colour of the one that it limits
COLOURS = ["#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#5c5f66"]
STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#343a40}"
    ".title{font-size:15px;font-weight:600;fill:#212529}.note{fill:#868e96;font-size:11px}"
    ".grid{stroke:#e9ecef}.axis{stroke:#868e96}.line{fill:none;stroke-width:2.2;stroke-linejoin:round}.dash{stroke-dasharray:6 4}"
)


def chart(title, x_title, y_title, series, note="", x_ticks=None):
    """`series` is a list of (name, [(x, y), …]); both axes begin at zero."""
    x_top = max(x_ticks) if x_ticks else nice_top(max(x for _, points in series for x, _ in points))
    y_top = nice_top(max(y for _, points in series for _, y in points))
    across = lambda x: LEFT + x / x_top * (WIDTH - LEFT - RIGHT)  # noqa: E731
    down = lambda y: HEIGHT - BOTTOM - y / y_top * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 24, title, "title"),
    ]
    for y in ticks(y_top):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(text(LEFT - 8, down(y) + 4, number(y), anchor="end"))
    shown = -math.inf
    for x in x_ticks or ticks(x_top):
        parts.append(f'<line class="axis" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{down(0):.1f}" y2="{down(0) + 5:.1f}"/>')
        if across(x) - shown > 18:
            parts.append(text(across(x), down(0) + 19, number(x), anchor="middle"))
            shown = across(x)
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(0):.1f}" y2="{down(0):.1f}"/>')
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_title, anchor="middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(18 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>')
    at = LEFT
    plain = [name for name, _ in series if not name.endswith(LIMIT)]
    for name, points in series:
        colour = COLOURS[plain.index(name.removesuffix(LIMIT)) % len(COLOURS)]
        dash = " dash" if name.endswith(LIMIT) else ""
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in sorted(points))
        parts.append(f'<polyline class="line{dash}" stroke="{colour}" points="{path}"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        parts.append(f'<line class="line{dash}" stroke="{colour}" x1="{at}" x2="{at + 20}" y1="42" y2="42"/>')
        parts.append(text(at + 26, 46, name))
        at += 44 + 6.4 * len(name)
    if note:
        parts.append(text(WIDTH - RIGHT, 24, note, "note", "end"))
    return "\n".join([*parts, "</svg>", ""])


def text(x, y, words, class_="", anchor="start"):
    class_ = f' class="{class_}"' if class_ else ""
    return f'<text{class_} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def step_of(top):
    """A round step that cuts what reaches to `top` into four to eight parts."""
    rough = top / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough)


def nice_top(largest):
    largest = max(largest, 1e-9)
    step = step_of(largest)
    return math.ceil(largest * 1.02 / step) * step


def ticks(top):
    step = step_of(top)
    return [step * index for index in range(round(top / step) + 1)]


def number(value):
    return f"{value:,.6g}" if value < 1000 else f"{value:,.0f}"
