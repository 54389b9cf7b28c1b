"""The chart of a benchmark: what the table says, to be seen at a glance."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from results import Results
from svg import Picture
from table import number
from workloads import GROWTHS, SERVERS, WORKLOADS

COLOURS = {
    "floor": "#8c8c8c",
    "relay": "#d55e00",
    "compiled": "#882255",
    "node": "#009e73",
    "go": "#e69f00",
    "picows": "#0072b2",
    "websockets": "#cc79a7",
    "websockets-trio": "#56b4e9",
}
"""Colours that people who see few of them can tell apart."""
HIGHEST_RATIO = 4.0
"""The end of the axis of ratios. The slowest server would leave no room for the differences of the others."""
GRID, INK = "#e3e3e3", "#222222"
WIDTH, MARGIN, TOP = 1200.0, 24.0, 76.0
PANEL_WIDTH, PANEL_HEIGHT = (WIDTH - 3 * MARGIN) / 2, 300.0
LEFT, HEADROOM, FOOT = 52.0, 44.0, 46.0
"""Of a panel: room for the numbers of its axis, its title, and its labels."""

Bars = list[tuple[str, dict[str, float]]]
"""Label → server → figure."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a panel's figures go."""

    x: float
    y: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        return self.y + self.height


def round_steps(highest: float) -> list[float]:
    """Return the marks of an axis from 0 to `highest` or beyond: four to eight round numbers."""
    raw = highest / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    return [step * mark for mark in range(math.ceil(highest / step) + 1)]


def decades(values: Sequence[float]) -> list[float]:
    """Return the powers of ten from the one below all values to the one above them, two at least."""
    low = math.floor(math.log10(min(values)) + 1e-9)
    high = max(math.ceil(math.log10(max(values)) - 1e-9), low + 1)
    return [10.0**power for power in range(low, high + 1)]


def _logarithmic(marks: Sequence[float], start: float, length: float) -> Callable[[float], float]:
    low, high = math.log10(marks[0]), math.log10(marks[-1])
    return lambda value: start + (math.log10(value) - low) / (high - low) * length


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _frame(picture: Picture, place: int, title: str) -> Box:
    """Write a panel's title; return where its figures go."""
    column, row = place % 2, place // 2
    x = MARGIN + column * (PANEL_WIDTH + MARGIN)
    y = TOP + row * (PANEL_HEIGHT + MARGIN)
    picture.text(x, y + 20, title, size=15, weight="bold")
    return Box(x + LEFT, y + HEADROOM, PANEL_WIDTH - LEFT, PANEL_HEIGHT - HEADROOM - FOOT)


def _levels(picture: Picture, box: Box, marks: Sequence[float], place_of: Callable[[float], float]) -> None:
    for mark in marks:
        y = place_of(mark)
        picture.line([(box.x, y), (box.x + box.width, y)], stroke=GRID)
        picture.text(box.x - 8, y + 4, _short(mark), size=11, anchor="end")


def draw_bars(
    picture: Picture,
    place: int,
    title: str,
    bars: Bars,
    *,
    logarithmic: bool = False,
    highest: float = math.inf,
) -> None:
    """Draw a panel of bars, those of a label side by side.

    A bar above `highest` is cut, and has its number.
    """
    box = _frame(picture, place, title)
    values = [value for _, row in bars for value in row.values() if value > 0]
    if logarithmic:
        marks = decades(values)
        place_of = _logarithmic(marks, box.bottom, -box.height)
    else:
        marks = round_steps(min(max(values), highest))

        def place_of(value: float) -> float:
            return box.bottom - min(value / marks[-1], 1) * box.height

    _levels(picture, box, marks, place_of)
    slot = box.width / len(bars)
    for index, (label, row) in enumerate(bars):
        thickness = min(slot * 0.84 / len(row), 44.0)
        x = box.x + slot * (index + 0.5) - thickness * len(row) / 2
        for server, value in row.items():
            if value > 0:
                top = place_of(value)
                picture.rectangle(
                    x,
                    top,
                    thickness - 1,
                    box.bottom - top,
                    fill=COLOURS[server],
                    title=f"{server}, {label}: {number(value)}",
                )
                if thickness >= 13 or value > marks[-1]:
                    picture.text(x + (thickness - 1) / 2, top - 3, number(value), size=8.5, anchor="middle")
            x += thickness
        first, _, second = label.partition("\n")
        picture.text(box.x + slot * (index + 0.5), box.bottom + 16, first, size=11, anchor="middle")
        picture.text(box.x + slot * (index + 0.5), box.bottom + 30, second, size=11, anchor="middle")
    picture.line([(box.x, box.bottom), (box.x + box.width, box.bottom)], stroke=INK)


def draw_curves(
    picture: Picture, place: int, title: str, axis: str, curves: Mapping[str, Mapping[int, float]]
) -> None:
    """Draw a panel of curves over a size, with logarithmic axes: proportional growth has one slope."""
    box = _frame(picture, place, title)
    costs = [cost for curve in curves.values() for cost in curve.values()]
    sizes = sorted({size for curve in curves.values() for size in curve})
    marks = decades(costs)
    y_of = _logarithmic(marks, box.bottom, -box.height)
    x_of = _logarithmic(decades(sizes), box.x, box.width)
    _levels(picture, box, marks, y_of)
    for size in sizes:
        picture.line([(x_of(size), box.bottom), (x_of(size), box.bottom + 4)], stroke=INK)
        picture.text(x_of(size), box.bottom + 16, _short(size), size=11, anchor="middle")
    picture.text(box.x + box.width / 2, box.bottom + 32, axis, size=11, anchor="middle")
    for server, curve in curves.items():
        points = [(x_of(size), y_of(cost)) for size, cost in sorted(curve.items())]
        picture.line(points, stroke=COLOURS[server], width=2)
        for (x, y), (size, cost) in zip(points, sorted(curve.items()), strict=True):
            picture.dot(x, y, fill=COLOURS[server], title=f"{server}, {size} {axis}: {number(cost)}")
    picture.line([(box.x, box.bottom), (box.x + box.width, box.bottom)], stroke=INK)


def _bars(results: Results, group: str, *, as_ratios: bool = False, key: str | None = None) -> Bars:
    bars: Bars = []
    for workload in WORKLOADS:
        if workload.group != group:
            continue
        chosen = key or workload.figures[0].key
        row = {}
        for server in SERVERS:
            value = (
                results.ratio(workload.name, chosen, server, "floor")
                if as_ratios
                else results.figure(workload.name, chosen, server)
            )
            if value is not None:
                row[server] = value
        if row:
            bars.append((workload.name.replace("-", "\n", 1), row))
    return bars


def _panels(results: Results) -> Iterator[Callable[[Picture, int], None]]:
    """Give what draws each panel that there are figures for."""

    def of_bars(
        title: str, bars: Bars, *, logarithmic: bool = False, highest: float = math.inf
    ) -> Callable[[Picture, int], None]:
        return lambda picture, place: draw_bars(
            picture, place, title, bars, logarithmic=logarithmic, highest=highest
        )

    if bars := _bars(results, "delivery", as_ratios=True):
        yield of_bars("CPU per delivery, as a multiple of the floor's", bars, highest=HIGHEST_RATIO)
    for key, title in (("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9")):
        if bars := _bars(results, "latency", key=key):
            yield of_bars(f"Latency {title} at fixed loads, µs", bars, logarithmic=True)
    if bars := _bars(results, "memory"):
        yield of_bars("Memory per idle connection, KiB", bars)
    if bars := _bars(results, "storm"):
        yield of_bars("CPU per connection of a storm, µs", bars)
    for growth in GROWTHS:
        curves = {server: results.costs(growth, server) for server in SERVERS}
        if any(len(curve) >= 2 for curve in curves.values()):
            there = {server: curve for server, curve in curves.items() if curve}

            def draw(
                picture: Picture,
                place: int,
                *,
                title: str = growth.cost,
                axis: str = growth.axis,
                curves: Mapping[str, Mapping[int, float]] = there,
            ) -> None:
                draw_curves(picture, place, title, axis, curves)

            yield draw


def chart(results: Results, *, caption: str) -> str:
    """Return the chart as SVG; `caption` says what machine it was, and when."""
    panels = list(_panels(results))
    rows = math.ceil(len(panels) / 2)
    picture = Picture(WIDTH, TOP + rows * (PANEL_HEIGHT + MARGIN) + 8)
    picture.rectangle(0, 0, picture.width, picture.height, fill="#ffffff")
    picture.text(MARGIN, 30, "brewos-relay and other relays", size=20, weight="bold")
    picture.text(MARGIN, 50, caption, size=11, fill="#555555")
    x = WIDTH - MARGIN
    for server in reversed(SERVERS):
        x -= 14 + 7.0 * len(server) + 22
        picture.rectangle(x, 22, 12, 12, fill=COLOURS[server])
        picture.text(x + 18, 32, server, size=12)
    for place, draw in enumerate(panels):
        draw(picture, place)
    return picture.to_svg()
