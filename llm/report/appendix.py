"""The parts of the page that all stages share: data, configuration, time, provenance.

In: the stages of a pipeline. Out: a `Part` each. Left out: what belongs to one stage (`sections`).
"""

from collections.abc import Iterator, Mapping
import json
from typing import Any

from llm.phases import goodput, USEFUL
from llm.report import plots
from llm.report.folder import Stage
from llm.report.parts import duration, finite, number, Part, percent, Table


def cleaning(stages: list[Stage]) -> Part:
    """What was left out of the data, and why."""
    splits = [(stage.name, source.removeprefix('data.'), split, said)  # the others keep the key of their section
              for stage in stages for source, by_split in stage.data.items()
              for split, said in by_split.items()]
    if not splits:
        return Part('Data', absent='no run of this pipeline has said what its data held (data.json)')
    reasons = list(dict.fromkeys(reason for *_, said in splits for reason in said.get('dropped', {})))
    rows = [[*where, number(said.get('documents')), number(said.get('kept')), _text_kept(said),
             *(number(said['dropped'][reason]) if reason in said.get('dropped', {}) else '' for reason in reasons),
             number(said.get('rows')), number(said.get('tokens'))] for *where, said in splits]
    quotes = [(f'{stage}, {source}, {split}: {_words(reason)}', text) for stage, source, split, said in splits
              for reason, texts in said.get('examples', {}).items() for text in texts]
    return Part('Data', 'What each source held, what was left out of it and why, and what remained to learn from.',
                table=Table(['stage', 'source', 'split', 'documents', 'kept', 'text kept', *map(_words, reasons),
                             'rows', 'tokens'], rows, names=3), quotes=quotes)


def _text_kept(said: Mapping[str, Any]) -> str:
    every, kept = finite(said.get('chars')), finite(said.get('kept_chars'))
    return percent(kept / every) if every and kept is not None else '–'


def differences(stages: list[Stage], defaults: Mapping[str, Any]) -> Part:
    """Where the configs leave the defaults: a row for each key, a column for each stage."""
    plain = json.loads(json.dumps(dict(defaults)))  # tuples become lists, as in identity.json
    here: dict[tuple[str, str], dict[str, str]] = {}  # stages may have other defaults of one key
    for stage in stages:
        for key, old, new in _changes(stage.config, plain.get(stage.kind, {}), plain.get('source', {})):
            here.setdefault((key, _value(old)), {})[stage.name] = _value(new)
    if not here:
        return Part('Configuration', absent='every key of every stage has its default')
    names = [stage.name for stage in stages]
    rows = [[*key, *(values.get(name, '') for name in names)] for key, values in sorted(here.items())]
    return Part('Configuration', 'Keys that differ from configs/base.py, which explains each of them.',
                table=Table(['key', 'base', *names], rows, names=2 + len(names)))


def timing(stages: list[Stage]) -> Part:
    """Seconds by phase of every stage that has ended."""
    by_stage = {stage.name: stage.result['phases'] for stage in stages if stage.result.get('phases')}
    if not by_stage:
        return Part('Time', absent='no stage has ended yet' if not any(stage.result for stage in stages) else
                    'these runs ended before time was kept by phase')
    phases = list(dict.fromkeys(phase for seconds in by_stage.values() for phase in seconds))
    rows = [[name, *(duration(seconds.get(phase)) for phase in phases), duration(sum(seconds.values())),
             percent(goodput(seconds))] for name, seconds in by_stage.items()]
    minutes = {name: {phase: seconds.get(phase, 0) / 60 for phase in phases} for name, seconds in by_stage.items()}
    return Part('Time', 'Of all processes that worked on a stage; each second counts once. Compiling is counted apart '
                'from what it was done for, and what a crash or a step that went wrong cost is under restart. Goodput '
                f'is the share of {", ".join(USEFUL)}.', plots=[('Minutes by phase', plots.bars(minutes, 'minutes'))],
                table=Table(['stage', *phases, 'all', 'goodput'], rows))


def anomalies(stages: list[Stage]) -> Part:
    """Steps that went wrong, and what was left out for it."""
    rows = [[stage.name, number(one['step']), str(one['metric']), _value(one['value']), number(one['batch']),
             number(one['sealed'])] for stage in stages for one in stage.rewinds]
    if not rows:
        return Part('Steps that went wrong', absent='none did')
    return Part('Steps that went wrong', 'Nothing of such a step is kept: the run went back to a sealed one, and left '
                'out the batch.', table=Table(['stage', 'step', 'number', 'value', 'batch left out', 'back to'], rows,
                                              names=1))


def provenance(stages: list[Stage]) -> Part:
    """Which weights came from which, under which code."""
    sealed = [(stage.name, stage.manifest) for stage in stages if stage.manifest]
    if not sealed:
        return Part('Provenance', absent='no step is sealed yet')
    rows = [[name, manifest.identity[:16], number(manifest.step), manifest.fingerprint[:16],
             ', '.join(f'{record["stage"]}@{record["step"]} {record["fingerprint"][:16]}'
                       for record in manifest.parents.values()) or '–',
             manifest.tokenizer['sha256'][:16], manifest.git_commit[:12], manifest.time[:16].replace('T', ' ')]
            for name, manifest in sealed]
    packages = sealed[-1][1].packages
    return Part('Provenance', 'Hashes of all that a result depends on, of the weights that children start from, and of '
                'their parents\' weights.',
                table=Table(['stage', 'identity', 'step', 'weights', 'parents', 'tokenizer', 'commit', 'sealed, UTC'],
                            rows, names=8),
                footnote=', '.join(f'{name} {version}' for name, version in packages.items()))


def _changes(config: Mapping[str, Any], base: Mapping[str, Any], source: Mapping[str, Any],
             path: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, default, value) of what differs; a source is one key, with what sets it apart as its value."""
    for key, value in config.items():
        default, where = base.get(key), f'{path}{key}'
        if where in ('stage', 'init_from', 'reward_from', 'model'):
            continue  # the chain says these
        if key == 'sources':
            for name, chosen in value.items():
                yield f'{where}.{name}', None, {item: own for item, own in chosen.items() if own != source.get(item)}
        elif isinstance(value, dict) and isinstance(default, dict):
            yield from _changes(value, default, source, f'{where}.')
        elif value != default:
            yield where, default, value


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key} {_value(item)}' for key, item in value.items()) or 'as the base'
    return '–' if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(reason: str) -> str:
    return reason.replace('_', ' ')
