"""The figures of several pipelines side by side: python -m tools.compare WORKDIR...

In: workdirs of one recipe, e.g. of three seeds; of every stage the newest run that has ended is read.
Out: a Markdown table: each figure's mean over the workdirs and its range.
Left out: the page of one pipeline (`report`).
"""

import argparse
from collections.abc import Iterator
import math
import pathlib
import sys
from typing import Any

from llm import report
from llm.main import guarded
from llm.report.folder import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('workdirs', nargs='+', help='folders of pipelines, e.g. runs/seed0 runs/seed1 runs/seed2')
    workdirs = parser.parse_args().workdirs
    columns = [dict(figures(pathlib.Path(workdir))) for workdir in workdirs]
    print('| figure | mean | least | most | runs |\n|---|---|---|---|---|')
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column[name] for column in columns if name in column]
        shown = (math.fsum(values) / len(values), min(values), max(values), len(values))
        print(f'| {name} | {" | ".join(f"{value:.4g}" for value in shown)} |')


def figures(workdir: pathlib.Path) -> Iterator[tuple[str, float]]:
    """(name, number) of every figure of the workdir's stages: `stage/...`, with what result.json says first."""
    for name, folder in report.newest(workdir, ended=True).items():
        stage = Stage(folder)
        yield from _numbers(stage.result, name)
        yield from _numbers(stage.figures, name)


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f'{path}/{key}')
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


if __name__ == '__main__':
    sys.exit(guarded(main))
