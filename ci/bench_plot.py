# SPDX-License-Identifier: GPL-2.0-only
"""Bar charts as SVG, for scripts/bench: groups of bars with their spread, and a mark for a target."""

import math
from xml.sax.saxutils import escape

# Distinguishable with any kind of colour blindness (Okabe and Ito).
COLOURS = ["#0072b2", "#56b4e9", "#f0e442", "#e69f00", "#d55e00", "#009e73", "#cc79a7"]
BAR, GAP, LEFT, TOP, HEIGHT, BOTTOM = 16, 26, 58, 66, 240, 58


def ticks_of(top, log):
    if log:
        return [2 ** n for n in range(-1, math.ceil(math.log2(top)) + 1)]
    step = next(s for s in (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if top / s <= 7)
    return [round(step * n, 6) for n in range(math.ceil(top / step) + 1)]


def bars(title, unit, series, groups, values, targets=None, log=False):
    """The chart as text. `values` has (median, least, most) by (group, series); `targets` a list
    of numbers by group, which are for the first series; a group's name may have two lines."""
    targets = targets or {}
    groups = [g for g in groups if any((g, s) in values for s in series)]
    series = [s for s in series if any((g, s) in values for g in groups)]
    top = max([v[2] for v in values.values()] + [t for ts in targets.values() for t in ts] + [1]) * 1.02
    ticks = ticks_of(top, log)
    low, high = ticks[0], ticks[-1]
    # A group has room for its name, too.
    slot = max(len(series) * BAR, 6 * max((len(line) for g in groups for line in g.split("\n")), default=0)) + GAP
    # And the legend has, too.
    width = max(LEFT + slot * len(groups) + 20, LEFT + 20 + sum(34 + 6.2 * len(s) for s in series) + 90)
    slot = (width - LEFT - 20) / len(groups)

    def y(value):
        if log:
            part = math.log2(max(value, low) / low) / math.log2(high / low)
        else:
            part = value / high
        return TOP + HEIGHT * (1 - min(part, 1))

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{TOP + HEIGHT + BOTTOM}" '
           f'viewBox="0 0 {width:.0f} {TOP + HEIGHT + BOTTOM}" font-family="sans-serif" font-size="11">',
           '<!-- SPDX-License-Identifier: GPL-2.0-only -->', f'<title>{escape(title)}</title>', '<rect width="100%" height="100%" fill="#fff"/>',
           f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>']
    x = LEFT
    for number, name in enumerate(series):
        out += [f'<rect x="{x:.1f}" y="32" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}" stroke="#333" stroke-width=".5"/>',
                f'<text x="{x + 17:.1f}" y="42">{escape(name)}</text>']
        x += 34 + 6.2 * len(name)
    if targets:
        out += [f'<path d="M{x:.1f} 38h16" stroke="#000" stroke-width="2"/>', f'<text x="{x + 21:.1f}" y="42">target</text>']
    for tick in ticks:
        out += [f'<path d="M{LEFT} {y(tick):.1f}H{width - 10:.0f}" stroke="#{"999" if tick == 1 else "ddd"}"/>',
                f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>']
    out.append(f'<text transform="translate(14 {TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>')
    for at, group in enumerate(groups):
        left = LEFT + at * slot + GAP / 2
        inner = len(series) * BAR
        first = left + (slot - GAP - inner) / 2
        for number, name in enumerate(series):
            if (group, name) not in values:
                continue
            middle, least, most = values[group, name]
            x, centre = first + number * BAR, first + number * BAR + BAR / 2 - 1
            out += [f'<rect x="{x:.1f}" y="{y(middle):.1f}" width="{BAR - 2}" height="{TOP + HEIGHT - y(middle):.1f}" '
                    f'fill="{COLOURS[number % len(COLOURS)]}" stroke="#333" stroke-width=".5">'
                    f'<title>{escape(name)}: {middle:.3g} ({least:.3g} to {most:.3g})</title></rect>']
            if most > least:
                out.append(f'<path d="M{centre:.1f} {y(least):.1f}V{y(most):.1f}M{centre - 3:.1f} {y(least):.1f}h6'
                           f'M{centre - 3:.1f} {y(most):.1f}h6" stroke="#000" fill="none"/>')
        for target in targets.get(group, ()):
            out.append(f'<path d="M{first - 5:.1f} {y(target):.1f}h{BAR + 8}" stroke="#000" stroke-width="2"/>')
        for row, line in enumerate(group.split("\n")):
            out.append(f'<text x="{left + (slot - GAP) / 2:.1f}" y="{TOP + HEIGHT + 17 + 14 * row}" text-anchor="middle">{escape(line)}</text>')
    out.append(f'<path d="M{LEFT} {TOP + HEIGHT}H{width - 10:.0f}" stroke="#333"/></svg>')
    return "\n".join(out) + "\n"
