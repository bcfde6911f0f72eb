"""The page about a pipeline: `report.html`, one file that needs no other, no network and no script.

In: the folders of its runs, of which only small files are read (`folder`); the defaults of config keys.
Out: `<workdir>/report.html`. What is missing or damaged in a folder leaves its part of the page out, with a word why.
Left out: what is measured (`stages`, `yardsticks`); what is shown (`chain`, `sections`, `appendix`) and how it is
drawn (`plots`, `page.html.jinja`).
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import itertools
import os
import pathlib
import re
from typing import Any

import jinja2

from llm.errors import UserError
from llm.report import appendix, chain, sections
from llm.report.folder import Stage
from llm.report.parts import Part, UNEXPECTED


def write(workdir: str | os.PathLike, folders: Mapping[str, str | os.PathLike],
          defaults: Mapping[str, Any]) -> pathlib.Path:
    """Writes `report.html` into the workdir, whole or not at all, and returns its path.

    Args:
      folders: of the runs, by stage name, parents first.
      defaults: of every config key, by kind of stage; under 'source', those of a data source.
    """
    stages = [Stage(pathlib.Path(folder)) for folder in folders.values()]
    path = pathlib.Path(workdir) / 'report.html'
    partial = path.with_suffix('.partial')
    partial.write_text(_template().render(page(path.resolve().parent.name, stages, defaults)), 'utf-8')
    os.replace(partial, path)
    return path


def newest(workdir: str | os.PathLike, *, ended: bool = False) -> dict[str, pathlib.Path]:
    """The folders of a workdir's newest run (that has ended) of each name, parents first.

    Raises UserError where there are none.
    """
    found: dict[str, pathlib.Path] = {}
    for folder in sorted((path.parent for path in pathlib.Path(workdir).glob('*/identity.json')), key=_changed):
        stage = Stage(folder)
        if '.replaced-' not in folder.name and stage.kind in sections.KINDS and (stage.result or not ended):
            found[stage.name] = folder
    if not found:
        raise UserError(f'{workdir} holds no {"ended " if ended else ""}run; name the workdir of a pipeline, '
                        f'e.g. runs/quickstart')
    kinds = list(sections.KINDS)
    return dict(sorted(found.items(), key=lambda item: (kinds.index(Stage(item[1]).kind), item[0])))


def page(title: str, stages: list[Stage], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the template is given."""
    cards = [_shown(chain.card, stage, lambda error, stage=stage: chain.unreadable(stage)) for stage in stages]
    shared = (appendix.cleaning, functools.partial(appendix.differences, defaults=defaults), appendix.timing,
              appendix.anomalies, appendix.provenance)
    facts = _shown(functools.partial(chain.facts, cards=cards), stages, lambda error: [])
    return {'title': title, 'facts': facts, 'cards': cards,
            'stages': [(stage.name, [_shown(make, stage) for make in sections.KINDS.get(stage.kind, (unknown,))])
                       for stage in stages],
            'parts': [_shown(make, stages) for make in shared]}


def unknown(stage: Stage) -> Part:
    return Part('Nothing is known', absent='its identity.json is not there or cannot be read')


def _shown(make: Callable[[Any], Any], what: Any, otherwise: Callable[[Exception], Any] | None = None) -> Any:
    """A part of the page; files that hold what nobody expected cost that part alone."""
    try:
        return make(what)
    except UNEXPECTED as error:
        return (otherwise or _not_shown)(error)


def _not_shown(error: Exception) -> Part:
    return Part('Not shown', absent=f'a file of the run does not hold what was expected: {error!r}')


def _changed(folder: pathlib.Path) -> float:
    """When a run last wrote what a report reads."""
    return max(path.stat().st_mtime for path in folder.glob('*.json*'))


def _own_ids(numbers: Iterator[int], svg: str) -> str:
    """A plot for the page: its ids, which Matplotlib makes alike in all, get a number of its own."""
    return re.sub(r'( id="|"#|url\(#)', rf'\g<1>plot-{next(numbers)}-', svg)


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
    environment.filters['own_ids'] = functools.partial(_own_ids, itertools.count())
    return environment.get_template('page.html.jinja')
