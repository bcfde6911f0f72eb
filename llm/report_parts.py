"""What a report says of each kind of stage: its card in the chain, and the parts of its own section.

In: a stage, as `report` reads it from its folder. Out: texts, tables and plots, ready for the template.
Left out: reading folders, parts that all stages share (`report`), the look (`report.html.jinja`).
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from llm import plots

# Held-out numbers: what they are called, and whether more is better.
METRICS = {'bits_per_byte': ('bits per byte', False), 'next_token': ('nats a token of the answers', False),
           'k_wise': ('ranking loss, nats', False), 'reward': ('reward, in deviations', True), 'gold': ('gold score', True)}
NAMES = {'model': 'this model', 'parent': 'its parent', 'gzip': 'gzip', 'kn_byte_trigram': 'byte trigram',
         'kn_token_trigram': 'token trigram', 'tfidf_logistic': 'TF-IDF + logistic', 'ridge': 'TF-IDF + ridge',
         'lexicon': 'VADER lexicon', 'raters': 'one rater', 'sft': 'SFT', 'ppo': 'PPO'}


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text already; the first `names` columns are words, the others numbers."""

    head: list[str]
    rows: list[list[str]]
    names: int = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """A heading, a sentence on how to read it, and what is there of plots, a table and texts."""

    title: str
    note: str = ''
    plots: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # caption, SVG
    table: Table | None = None
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # prompt, answers: (who, text, scores)
    quotes: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # what it is an example of, text
    footnote: str = ''
    absent: str = ''  # why there is nothing


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One of our numbers beside others of the same split; each of those with whether ours is better."""

    what: str
    ours: str
    others: list[tuple[str, str, bool]]


# The chain.

def facts(stages: list[Any]) -> list[tuple[str, str]]:
    """The whole pipeline in a few words."""
    first = next((stage.manifest for stage in stages if stage.manifest), None)
    seconds = sum(stage.result.get('seconds', 0) for stage in stages)
    ended = sum(bool(stage.result) for stage in stages)
    said = [('stages', f'{ended} of {len(stages)} finished'), ('time', duration(seconds))]
    if first:
        model = first.model
        said += [('parameters', number(parameters(first))),
                 ('model', f'{model["num_layers"]} layers, width {model["model_dim"]}'),
                 ('vocabulary', f'{number(model["vocab_size"])} pieces'), ('seed', str(first.seed))]
    return said


def parameters(manifest: Any) -> int:
    """Of the first head; a policy that is saved with its value model counts alone."""
    leaves = {path: leaf['shape'] for path, leaf in manifest.leaves.get('params', {}).items()}
    return sum(math.prod(shape) for path, shape in leaves.items() if 'value' not in path.replace("'", '/').split('/'))


def card(stage: Any, stages: list[Any]) -> dict[str, Any]:
    """A stage in ten seconds: from what, is it better than its parent and the yardsticks, where it stopped."""
    result = stage.result
    label, more = METRICS.get(result.get('metric'), (result.get('metric', ''), False))
    before, after = finite(result.get('before')), finite(result.get('after'))
    better = None if before is None or after is None else (after > before) == more and after != before
    return {'name': stage.name, 'kind': stage.kind, 'hash': stage.hash8, 'label': label, 'before': decimal(before),
            'after': decimal(after), 'better': better, 'sources': sources(stage.config), 'parents': parents(stage),
            'ending': ending(stage), 'verdict': VERDICTS[stage.kind](stage) if stage.kind in VERDICTS else None,
            'finished': bool(result), 'time': duration(result.get('seconds'))}


def sources(config: Mapping[str, Any]) -> str:
    """Sources by their share of the training stream."""
    found = config.get('data', {}).get('sources', {})
    total = sum(source['weight'] for source in found.values())
    return ', '.join(f'{name} {percent(source["weight"] / total)}' if len(found) > 1 else name
                     for name, source in sorted(found.items(), key=lambda item: -item[1]['weight']))


def parents(stage: Any) -> str:
    """Its parents, by config key: name and step."""
    named = {}
    for key, reference in stage.identity.get('parents', {}).items():
        folder, _, step = reference.rpartition('@')
        named[key] = f'{folder.rpartition("/")[2].rpartition("-")[0]} at step {step}'
    return ', judged by '.join(named[key] for key in sorted(named)) or 'nothing'


def ending(stage: Any) -> str:
    result = stage.result
    if not result:
        last = max((row.get('step', 0) for row in stage.rows), default=0)
        return f'not finished; at step {number(last)} of {number(stage.config.get("stop_step"))}'
    why = 'as configured' if result.get('why') == 'stop_step' else result.get('why', '')
    return f'kept step {number(result.get("step"))}; stopped at {number(result.get("last_step"))}: {why}'


def _verdict(what: str, values: Mapping[str, Any], ours: str, more: bool, show) -> Verdict | None:
    mine = finite(values.get(ours))
    others = {name: finite(value) for name, value in values.items() if name in NAMES or name.startswith('best_of')}
    if mine is None:
        return None
    return Verdict(what, show(mine), [(called(name), show(value), (mine > value) == more and mine != value)
                                      for name, value in others.items() if name != ours and value is not None])


def _pretrain_verdict(stage: Any) -> Verdict | None:
    texts = stage.figures.get('bits_per_byte', {})
    name = 'works' if 'works' in texts else next(iter(texts), '')
    return _verdict(f'bits per byte, {name} of the {stage.figures.get("split")} split', texts.get(name, {}), 'model', False,
                    decimal)


def _sft_verdict(stage: Any) -> Verdict | None:
    for name, values in stage.figures.get('choices', {}).items():
        return _verdict(f'right labels, {name}', values, 'model', True, percent)
    return None


def _reward_verdict(stage: Any) -> Verdict | None:
    pairs = {float(gap): values for gap, values in stage.figures.get('pairs', {}).items()}
    gap = 1.0 if 1.0 in pairs else min(pairs, default=None)
    return _verdict(f'right order where ratings are more than {gap:g} apart', pairs[gap], 'model', True, percent) if pairs else None


def _ppo_verdict(stage: Any) -> Verdict | None:
    gold = {name: values.get('gold') for name, values in stage.figures.get('policies', {}).items()}
    return _verdict('gold score', gold, 'ppo', True, decimal)


VERDICTS = {'pretrain': _pretrain_verdict, 'sft': _sft_verdict, 'reward': _reward_verdict, 'ppo': _ppo_verdict}


# Sections of the stages.

def pretrain(stage: Any) -> list[Part]:
    texts = stage.figures.get('bits_per_byte')
    curves = [('Loss, nats a token', losses(stage, 'next_token')),
              ('Held-out bits per byte, by source', by_source(stage, 'bits_per_byte', 'bits per byte'))]
    return [learning(stage, curves), bits(stage.figures['split'], texts) if texts else no_figures('Bits per byte', stage),
            continued(stage, 'continuation')]


def bits(split: str, texts: Mapping[str, Mapping[str, Any]]) -> Part:
    kinds = [kind for kind in next(iter(texts.values())) if kind != 'bytes']
    shown = {name: {called(kind): finite(values.get(kind)) for kind in kinds} for name, values in texts.items()}
    return Part('Bits per byte beside yardsticks',
                f'Fewer is better. All numbers are of the same bytes of the {split} split; the trigrams were fitted on the '
                'training text.', plots=[('The lower, the better', plots.dots(shown, 'bits per byte'))],
                table=Table(['text', *map(called, kinds), 'bytes'],
                            [[name, *(decimal(values.get(kind)) for kind in kinds), number(values.get('bytes'))]
                             for name, values in texts.items()]))


def sft(stage: Any) -> list[Part]:
    curves = [('Loss, nats a token of the answers', losses(stage, 'next_token')),
              ('Held-out loss, by source', by_source(stage, 'next_token', 'nats a token'))]
    parts = [learning(stage, curves)]
    nats, choices = stage.figures.get('answer_nats'), stage.figures.get('choices')
    if nats:
        parts.append(Part('Answers beside the parent', 'Cross-entropy of held-out answers, in nats a token. Fewer is better.',
                          table=Table(['source', 'this model', 'its parent'],
                                      [[name, decimal(values.get('model')), decimal(values.get('parent'))]
                                       for name, values in nats.items()])))
    if choices:
        kinds = ('model', 'tfidf_logistic', 'parent')
        parts.append(Part('Choices beside yardsticks', 'How often the likelier label is the right one.',
                          plots=[('Share of right labels', plots.dots({name: {called(kind): finite(values.get(kind)) for kind in kinds}
                                                              for name, values in choices.items()}, 'share that is right'))],
                          table=Table(['source', *map(called, kinds), 'rows'],
                                      [[name, *(percent(values.get(kind)) for kind in kinds), number(values.get('rows'))]
                                       for name, values in choices.items()])))
    return [*parts, *([] if nats or choices else [no_figures('Yardsticks', stage)]), continued(stage, 'answer')]


def reward(stage: Any) -> list[Part]:
    curves = [('Ranking loss', losses(stage, 'k_wise')),
              ('Held-out accuracy, by least gap of ratings', by_prefix(stage, 'accuracy_gap_', 'share of pairs'))]
    parts = [learning(stage, curves)]
    if pairs := stage.figures.get('pairs'):
        parts.append(accuracy(pairs))
    if calibration := stage.figures.get('calibration'):
        parts.append(calibrated(calibration))
    ranked = [{'prompt': '', 'answers': [('', row.get('answer', ''), [('score', decimal(row.get('score')))])]}
              for row in (*stage.samples[:3], *stage.samples[3:][-3:])]
    parts += [] if pairs or calibration else [no_figures('Yardsticks', stage)]
    return [*parts, Part('What it likes and what it does not', "The SFT policy's answers, the best and the worst by this scorer.",
                         samples=ranked, absent='' if ranked else 'no samples yet')]


def accuracy(pairs: Mapping[str, Mapping[str, Any]]) -> Part:
    gaps = sorted(pairs, key=float)
    kinds = [kind for kind in pairs[gaps[0]] if kind != 'pairs']
    series = {called(kind): ([float(gap) for gap in gaps], [finite(pairs[gap].get(kind)) for gap in gaps]) for kind in kinds}
    return Part('Accuracy by gap beside yardsticks', 'Of two answers whose mean ratings differ by more than the gap, how often the '
                'better one scores higher. "One rater" is how often a single person agrees with the others.',
                plots=[('The higher, the better', plots.lines(series, 'gap of mean ratings', 'share in the right order',
                                              ticks=[float(gap) for gap in gaps]))],
                table=Table(['gap', *map(called, kinds), 'pairs'],
                            [[f'> {gap}', *(percent(pairs[gap].get(kind)) for kind in kinds), number(pairs[gap].get('pairs'))]
                             for gap in gaps]))


def calibrated(calibration: Mapping[str, Any]) -> Part:
    filled = [bin_ for bin_ in calibration.get('bins', []) if bin_.get('count')]
    series = {name: tuple([finite(bin_.get(f'{key}{suffix}')) for bin_ in filled] for key in ('confidence', 'accuracy'))
              for name, suffix in (('as trained', ''), ('after one temperature', '_after'))}
    return Part('Calibration', f'Expected calibration error {percent(calibration.get("ece"))} as trained, '
                f'{percent(calibration.get("ece_after"))} after dividing by one temperature of '
                f'{decimal(calibration.get("temperature"))}, fitted on validation pairs.',
                plots=[('Reliability: on the dashed line, confidence is what it says', plots.reliability(series))])


def ppo(stage: Any) -> list[Part]:
    held = evaluations(stage)
    over = {name: ([row.get('kl') for row in held], [finite(row.get(key)) for row in held])
            for name, key in (('reward', 'reward'), ('gold', 'gold_deviations')) if any(key in row for row in held)}
    budget = finite(stage.config.get('kl_budget'))
    near = budget is not None and budget <= 2 * max([finite(row.get('kl')) or 0 for row in held], default=0)
    curves = []
    if len(held) > 1:
        curves = [('The frontier: what each nat away from the SFT policy brought, held out',
                   plots.lines(over, 'KL, nats an answer', 'deviations of SFT answers', limit=(budget, 'budget') if near else None)),
                  ('Length of held-out answers', plots.lines(column(held, 'length'), 'iteration', 'tokens')),
                  ('Share of answers that end, and of distinct pairs of tokens',
                   plots.lines(column(held, 'ended', 'distinct_2'), 'iteration', 'share'))]
    parts = [learning(stage, [('Reward, in deviations', rewards(stage)), *curves])]
    if policies := stage.figures.get('policies'):
        kinds = list(dict.fromkeys(kind for values in policies.values() for kind in values))
        parts.append(Part('Policies beside each other', 'On the same prompts of the test split.',
                          table=Table(['policy', *(kind.replace('_', ' ') for kind in kinds)],
                                      [[called(name), *(decimal(values.get(kind)) for kind in kinds)] for name, values in policies.items()])))
    else:
        parts.append(no_figures('Policies', stage))
    return [*parts, side_by_side(stage)]


def side_by_side(stage: Any) -> Part:
    """Answers of both policies to the same prompts."""
    rows = stage.figures.get('samples') or stage.samples
    shown = [{'prompt': row.get('prompt', ''),
              'answers': [(called(who), row.get(who, ''), [(kind, decimal(row[f'{who}_{kind}'])) for kind in ('gold', 'reward')
                                                   if f'{who}_{kind}' in row]) for who in ('sft', 'ppo')]}
             for row in rows if 'sft' in row and 'ppo' in row]
    return Part('SFT and PPO side by side', 'Answers to the same held-out prompts, each with its scores.', samples=shown[:12],
                absent='' if shown else 'no samples yet') if shown or not stage.samples else continued(stage, 'answer')


KINDS = {'pretrain': pretrain, 'sft': sft, 'reward': reward, 'ppo': ppo}


# What they share.

def learning(stage: Any, curves: list[tuple[str, str]]) -> Part:
    drawn = [(caption, svg) for caption, svg in curves if svg]
    return Part('Learning curves', plots=drawn, absent='' if drawn else 'nothing was logged yet')


def no_figures(title: str, stage: Any) -> Part:
    why = 'the stage has not ended' if not stage.result else 'figures were off (figures.rows=0) or could not be read'
    return Part(title, absent=f'not measured: {why}')


def continued(stage: Any, key: str) -> Part:
    shown = [{'prompt': row.get('prompt', ''), 'answers': [('', row[key], [])]} for row in stage.samples if key in row]
    return Part('What it says', samples=shown, absent='' if shown else 'no samples yet')


def evaluations(stage: Any) -> list[dict[str, Any]]:
    return [row for row in stage.rows if row.get('kind') == 'evaluate']


def column(rows: list[dict[str, Any]], *keys: str) -> dict[str, tuple[list, list]]:
    """Series over steps, of the keys that any row has."""
    return {key.replace('_', ' '): ([row['step'] for row in rows if key in row], [finite(row[key]) for row in rows if key in row])
            for key in keys if any(key in row for row in rows)}


def losses(stage: Any, key: str) -> str:
    """Training loss and the same held out, with the step that was kept."""
    train = column([row for row in stage.rows if row.get('kind') == 'train'], key)
    held = column(evaluations(stage), key)
    series = {name: values for name, part in (('training', train), ('held out', held)) for values in part.values()}
    return plots.lines(series, 'step', 'nats', faint=['training'], mark=kept(stage)) if series else ''


def rewards(stage: Any) -> str:
    train = column([row for row in stage.rows if row.get('kind') == 'train'], 'reward')
    held = column(evaluations(stage), 'reward', 'gold_deviations')
    series = {name: values for name, values in [*(('rollouts', values) for values in train.values()),
                                                *((f'held out, {name}', values) for name, values in held.items())]}
    return plots.lines(series, 'iteration', 'deviations', faint=['rollouts'], mark=kept(stage)) if series else ''


def by_source(stage: Any, key: str, unit: str) -> str:
    return by_prefix(stage, f'{key}/', unit)


def by_prefix(stage: Any, prefix: str, unit: str) -> str:
    held = evaluations(stage)
    keys = list(dict.fromkeys(key for row in held for key in row if key.startswith(prefix)))
    series = {key.removeprefix(prefix): values for key in keys for values in column(held, key).values()}
    return plots.lines(series, 'step', unit, mark=kept(stage)) if series else ''


def kept(stage: Any) -> tuple[float, str] | None:
    return (stage.result['step'], 'kept') if 'step' in stage.result else None


# Numbers as text.

def finite(value: Any) -> float | None:
    """A number, or None for what is absent, null, or not finite."""
    try:
        return float(value) if value is not None and math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def called(name: str) -> str:
    return NAMES.get(name, name.replace('_', ' '))


def decimal(value: Any) -> str:
    value = finite(value)
    if value is None:
        return '–'
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}' if abs(value) < 1 else f'{value:.4g}'


def percent(value: Any) -> str:
    value = finite(value)
    return '–' if value is None else f'{100 * value:.1f} %'.replace('.0 %', ' %')


def number(value: Any) -> str:
    value = finite(value)
    return '–' if value is None else f'{value:,.0f}'


def duration(seconds: Any) -> str:
    seconds = finite(seconds)
    if seconds is None:
        return '–'
    if seconds < 99.5:
        return f'{seconds:.3g} s' if seconds < 9.95 else f'{seconds:.0f} s'
    minutes, hours = seconds / 60, seconds / 3600
    return f'{minutes:.0f} min' if minutes < 99.5 else f'{hours:.1f} h'
