"""The results for people, and for programs: a table by rich, a line of JSON for each row.

In: comparisons, what is known of the machine. Out: standard output; a file that is appended to.
"""

import json
import pathlib
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from llm import provenance
from tools.bench.compare import Comparison

_PLAIN_WIDTH = 160  # characters, where no terminal says how wide it is


def show(comparisons: list[Comparison], machine: dict[str, Any], load: dict[str, Any], peak: float) -> None:
    """Medians over the rounds; the ratio is the median of the rounds' own ratios, least and most in brackets."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    rounds = max((len(each.ours) for each in comparisons), default=0)
    title = (f'{machine["cpu"]}, {machine["cores"]} cores, {load["busy"]:.0%} of them taken by others at the start; '
             f'matmul peak {peak / 1e9:.0f} GFLOP/s; {rounds} rounds')
    drawn = Table(title=title, title_justify='left')
    for column in ('workload', 'measure', 'ours', 'share of peak', 'peer', "peer's", 'ratio (least to most)'):
        drawn.add_column(column, justify='right' if column in ('ours', "peer's", 'share of peak') else 'left',
                         overflow='fold')
    for each in comparisons:
        share = '' if each.share is None else f'{each.share:.0%}'
        theirs = _number(statistics.median(each.theirs)) if each.theirs else ''
        drawn.add_row(each.workload, each.measure, _number(statistics.median(each.ours)), share, each.peer, theirs,
                      each.missing or ratio(each))
    console.print(drawn)


def ratio(each: Comparison) -> str:
    """'1.06 (1.01 to 1.10)'; more than 1 is faster than the peer."""
    if not each.ratios:
        return ''
    return f'{statistics.median(each.ratios):.2f} ({min(each.ratios):.2f} to {max(each.ratios):.2f})'


def append(path: pathlib.Path, comparisons: list[Comparison], machine: dict[str, Any], load: dict[str, Any],
           peak: float) -> None:
    """A line for each comparison, with all that its numbers depend on."""
    around = {'commit': provenance.git_commit(), 'machine': machine, 'load': load, 'peak_flops': peak}
    with path.open('a') as file:
        for each in comparisons:
            file.write(json.dumps({**each.as_json(), **around}) + '\n')


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
