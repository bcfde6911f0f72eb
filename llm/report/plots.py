"""Plots of a report, as SVG that lives in a page: its colours and fonts are the page's, by CSS variables.

In: series of numbers by name. Out: one `<svg>` element each, as text, with no script or address in it; plots share
ids, to which the page adds a number each.
Left out: what is plotted and why (`sections`, `appendix`); a number that is None or not finite is a gap.

A plot is 331 units wide, about as many pixels on a phone, so that its text stays readable there.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import itertools
import math
import re
import warnings

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Locator, MaxNLocator

Lines = Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]]  # name -> xs, ys

# What Matplotlib draws with -> the CSS variable that it becomes.
_INK, _SOFT, _GRID = '#010101', '#020202', '#030303'
_COLOURS = ('#040404', '#050505', '#060606', '#070707', '#080808', '#090909', '#0a0a0a', '#0b0b0b')
_VARIABLES = {_INK: '--ink', _SOFT: '--soft', _GRID: '--grid',
              **{colour: f'--plot-{number}' for number, colour in enumerate(_COLOURS)}}
_MARKERS = 'osD^vPX*'
_STYLE = {
    'text.parse_math': False, 'svg.fonttype': 'none', 'svg.hashsalt': 'quartet', 'font.size': 9.5, 'legend.fontsize': 9,
    'text.color': _INK, 'axes.labelcolor': _SOFT, 'xtick.color': _SOFT, 'ytick.color': _SOFT, 'axes.edgecolor': _GRID,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.color': _GRID, 'grid.linewidth': .6,
    'axes.axisbelow': True, 'xtick.major.size': 0, 'ytick.major.size': 0, 'legend.frameon': False,
    'axes.prop_cycle': matplotlib.cycler(color=_COLOURS)}
_WIDTH_INCHES = 4.6
_NICE = (1, 2, 2.5, 5, 10)  # distances of ticks, by powers of ten
_LEGEND_CHARS = 62  # of a line of the legend; each name has a handle of 6 beside it


def lines(series: Lines, x: str, y: str, *, faint: Sequence[str] = (), mark: tuple[float, str] | None = None,
          limit: tuple[float, str] | None = None, ticks: Sequence[float] | None = None) -> str:
    """Lines over a common axis.

    Args:
      faint: names drawn thin and without points: noisy ones.
      mark: where on the x axis something happened, and what.
      limit: likewise a border.
      ticks: of the x axis, where it has few values of its own.
    """
    def draw(axes: Axes) -> None:
        for (name, (xs, ys)), marker in zip(series.items(), itertools.cycle(_MARKERS)):
            look = {'linewidth': .9, 'color': _SOFT, 'alpha': .7, 'zorder': 1} if name in faint else {
                'linewidth': 1.6, 'marker': marker, 'markersize': 3.6}
            axes.plot(_gaps(xs), _gaps(ys), label=name, **look)
        for place, style in ((mark, ':'), (limit, '--')):
            if place:
                axes.axvline(place[0], color=_SOFT, linewidth=1, linestyle=style, label=place[1])
        whole = all(float(value).is_integer() for xs, _ in series.values() for value in _known(xs))
        _labels(axes, x, y, FixedLocator(ticks) if ticks else MaxNLocator(6, steps=_NICE, integer=whole))
    return _svg(draw, 2.7)


def dots(rows: Mapping[str, Mapping[str, float]], x: str) -> str:
    """A row for each name, a dot in it for each series; rows read from the top."""
    def draw(axes: Axes) -> None:
        names = list(dict.fromkeys(name for values in rows.values() for name in values))
        heights = range(len(rows), 0, -1)
        for number, (name, marker) in enumerate(zip(names, itertools.cycle(_MARKERS))):
            axes.plot(_gaps([values.get(name) for values in rows.values()]), heights, marker, label=name,
                      markersize=7 if number == 0 else 5.5, fillstyle='full' if number == 0 else 'none',
                      zorder=3 if number == 0 else 2)
        axes.set_yticks(heights, list(rows))
        axes.set_ylim(.4, len(rows) + .6)
        axes.grid(visible=False, axis='x')
        _labels(axes, x, '')
    return _svg(draw, 1.1 + .26 * len(rows))


def reliability(series: Lines) -> str:
    """How often what was said with some confidence was right; the diagonal is a scorer that knows itself."""
    def draw(axes: Axes) -> None:
        axes.plot([.5, 1], [.5, 1], color=_SOFT, linewidth=1, linestyle='--')
        for (name, (xs, ys)), marker in zip(series.items(), itertools.cycle(_MARKERS)):
            axes.plot(_gaps(xs), _gaps(ys), linewidth=1.4, marker=marker, markersize=4, label=name)
        axes.set_xlim(.49, 1.01)
        _labels(axes, 'confidence in the chosen answer', 'share that was right')
    return _svg(draw, 2.7)


def bars(rows: Mapping[str, Mapping[str, float]], x: str) -> str:
    """A stacked bar for each name; rows read from the top."""
    def draw(axes: Axes) -> None:
        parts = list(dict.fromkeys(part for values in rows.values() for part in values))
        left = dict.fromkeys(rows, 0.0)
        for number, part in enumerate(parts):
            widths = [values.get(part, 0.0) for values in rows.values()]
            axes.barh(range(len(rows), 0, -1), widths, .56, left=list(left.values()), label=part,
                      color=_COLOURS[number % len(_COLOURS)])
            left = {name: left[name] + width for name, width in zip(rows, widths)}
        axes.set_yticks(range(len(rows), 0, -1), list(rows))
        axes.grid(visible=False, axis='y')
        _labels(axes, x, '')
    return _svg(draw, 1.2 + .3 * len(rows))


def _labels(axes: Axes, x: str, y: str, ticks: Locator | None = None) -> None:
    axes.xaxis.set_major_locator(ticks or MaxNLocator(6, steps=_NICE))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    names = axes.get_legend_handles_labels()[1]
    if names:
        fitting = _LEGEND_CHARS // (max(map(len, names)) + 6)
        axes.figure.legend(loc='outside upper left', ncols=max(1, min(fitting, len(names))), handlelength=1.6,
                           columnspacing=1.2, borderpad=0)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in _gaps(values) if math.isfinite(value)]


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _svg(draw: Callable[[Axes], None], height_inches: float) -> str:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # in Matplotlib's font; the page has others
        figure = Figure((_WIDTH_INCHES, height_inches), layout='constrained')
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format='svg', transparent=True,
                       metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
    return _for_a_page(text.getvalue())


def _for_a_page(text: str) -> str:
    """Without what belongs to a file of its own: declarations, size, ids that nothing names, colours and fonts."""
    text = text[text.index('<svg'):]
    text = re.sub(r'<(metadata|style).*?</\1>', '', text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', text, count=1)
    named = set(re.findall(r'#([\w-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in named else '', text)
    text = re.sub(r' font-family: [^;"]*;', '', text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f'var({variable})')
    return text.strip()
