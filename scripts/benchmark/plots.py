"""The curves as small SVG files: how time and memory grow with the number of certificates, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.figures import Results

_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 34, 40
_COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#7a5195")
_THOUSAND, _MILLION = 10**3, 10**6


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: its file ``name``, ``title``, the ``curves`` in it and the unit of the vertical axis."""

    name: str
    title: str
    curves: tuple[str, ...]
    unit: str


PLOTS = (
    Plot(
        "change",
        "Copy a certificate in, then read",
        ("regeneration + read", "certfs, whole bundle", "certfs, first 4 KiB"),
        "s",
    ),
    Plot("mount", "From the mount command to served", ("mount",), "s"),
    Plot("memory", "Resident memory of all processes", ("memory",), "KiB"),
)


def draw(results: Results, directory: Path) -> None:
    """Write every plot that there are points for."""
    directory.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        curves = {name: results.series[name] for name in plot.curves if name in results.series}
        if curves:
            (directory / f"{plot.name}.svg").write_text(render(plot, curves))


@dataclass(frozen=True, slots=True)
class _Axis:
    """A logarithmic axis: whole decades from 10^``low`` to 10^``high`` between two ends in pixels."""

    low: int
    high: int
    start: float
    end: float

    @classmethod
    def around(cls, values: list[float], start: float, end: float) -> _Axis:
        """Return an axis that has room for all of ``values``."""
        low = math.floor(math.log10(min(values)))
        high = math.ceil(math.log10(max(values)))
        return cls(low, max(high, low + 1), start, end)

    def at(self, value: float) -> float:
        """Return where a value is, in pixels."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def decades(self) -> list[float]:
        """The values that get a line."""
        return [10.0**exponent for exponent in range(self.low, self.high + 1)]


def render(plot: Plot, curves: Mapping[str, Mapping[int, float]]) -> str:
    """Return a plot as SVG."""
    counts = [float(count) for points in curves.values() for count in points]
    values = [value for points in curves.values() for value in points.values()]
    across = _Axis.around(counts, _LEFT, _WIDTH - _RIGHT)
    up = _Axis.around(values, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        '<g font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="13">{plot.title}</text>',
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">certificates in the directory</text>',
    ]
    parts += [
        _line(across.at(x), _TOP, across.at(x), _HEIGHT - _BOTTOM)
        + _text(across.at(x), _HEIGHT - _BOTTOM + 14, _short(x), "middle")
        for x in across.decades
    ]
    parts += [
        _line(_LEFT, up.at(y), _WIDTH - _RIGHT, up.at(y))
        + _text(_LEFT - 6, up.at(y) + 4, _amount(y, plot.unit), "end")
        for y in up.decades
    ]
    for (name, points), colour in zip(curves.items(), _COLOURS, strict=False):
        places = [(across.at(count), up.at(value)) for count, value in sorted(points.items())]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(f'<text x="{x + 8}" y="{y + 4}" fill="{colour}">{name}</text>')
    return "\n".join((*parts, "</g></svg>", ""))


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _short(value: float) -> str:
    if value >= _MILLION:
        return f"{value / _MILLION:g}M"
    return f"{value / _THOUSAND:g}k" if value >= _THOUSAND else f"{value:g}"


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:g} s" if value >= 1 else f"{value * _THOUSAND:g} ms"
    return f"{value / 1024:.3g} MiB"
