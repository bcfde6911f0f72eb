"""What the page says of each kind of stage: curves, numbers beside yardsticks, samples.

In: a stage. Out: a `Part` each. Left out: what all stages share (`appendix`), the cards at the top (`chain`).
"""

from collections.abc import Callable, Iterable, Mapping
import functools
import re
from typing import Any

from llm.report import plots
from llm.report.chain import called, METRICS
from llm.report.folder import Stage
from llm.report.parts import decimal, finite, number, Part, percent, Sample, Table

_MARK = re.compile(r'<\|\w+\|>')
SAMPLES = 12  # pairs of answers shown
POLICY_COLUMNS = {'gold': 'gold score', 'gold_deviations': 'gold, in deviations', 'reward': 'reward', 'vader': 'VADER',
                  'kl': 'KL, nats', 'kl_bound': 'KL at most', 'distinct_2': 'distinct-2', 'ended': 'ended',
                  'length': 'tokens'}


def unmeasured(title: str, stage: Stage) -> Part:
    why = 'figures were off (figures.rows=0)' if stage.result else 'the stage has not ended'
    return Part(title, absent=f'not measured: {why}')


# Learning curves.

def curves(stage: Stage, drawn: Iterable[tuple[str, str]]) -> Part:
    drawn = [(caption, svg) for caption, svg in drawn if svg]
    label, _ = METRICS.get(stage.result.get('metric'), ('', False))
    return Part('Learning curves', f'The held-out number that chose the step: {label}.' if label else '',
                plots=drawn, absent='' if drawn else 'nothing was logged yet')


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float | None]]:
    """Steps, and a number over them."""
    having = [row for row in rows if key in row]
    return [row['step'] for row in having], [finite(row[key]) for row in having]


def over_steps(stage: Stage, lines: plots.Lines, y: str, x: str = 'step', faint: str = '') -> str:
    """Lines over steps, with the kept one marked; nothing where there is nothing to draw."""
    kept = (stage.result['step'], 'kept step') if 'step' in stage.result else None
    lines = {name: line for name, line in lines.items() if line[0]}
    return plots.lines(lines, x, y, faint=[faint], mark=kept) if lines else ''


def loss(stage: Stage, key: str) -> str:
    return over_steps(stage, {'held out': series(stage.evaluations, key), 'training': series(stage.training, key)},
                      'nats', faint='training')


def by_prefix(stage: Stage, prefix: str, y: str, name: str = '') -> str:
    """A line for each held-out number whose name has that beginning."""
    keys = dict.fromkeys(key for row in stage.evaluations for key in row if key.startswith(prefix))
    return over_steps(stage, {name + key.removeprefix(prefix): series(stage.evaluations, key) for key in keys}, y)


def language_curves(stage: Stage) -> Part:
    return curves(stage, [('Loss, nats a token', loss(stage, 'next_token')),
                          ('Held-out bits per byte, by source', by_prefix(stage, 'bits_per_byte/', 'bits per byte'))])


def answer_curves(stage: Stage) -> Part:
    by_chat = series(stage.training, 'next_token_by_chat')
    return curves(stage, [('Loss of the answers, nats a token', loss(stage, 'next_token')),
                          ('Training loss, in which each chat weighs the same',
                           over_steps(stage, {'training': by_chat}, 'nats', faint='training')),
                          ('Held out, by source', by_prefix(stage, 'next_token/', 'nats a token'))])


def ranking_curves(stage: Stage) -> Part:
    return curves(stage, [('Ranking loss', loss(stage, 'k_wise')),
                          ('Held-out pairs in the right order, by least gap of their ratings',
                           by_prefix(stage, 'accuracy_gap_', 'share of pairs', name='more than '))])


def policy_curves(stage: Stage) -> Part:
    held = stage.evaluations
    reward = {'reward, held out': series(held, 'reward'), 'gold, held out': series(held, 'gold_deviations'),
              'reward, training': series(stage.training, 'reward')}
    shares = {'answers that end': series(held, 'ended'), "distinct-2, of SFT's": series(held, 'distinct_share')}
    draw = functools.partial(over_steps, stage, x='iteration')
    return curves(stage, [
        ('The frontier: what each nat away from SFT brought, held out', frontier(stage)),
        ('Reward and gold score', draw(reward, 'deviations of SFT answers', faint='reward, training')),
        ('Length of held-out answers', draw({'length': series(held, 'length')}, 'tokens')),
        ('Ends and diversity of held-out answers', draw(shares, 'share'))])


def frontier(stage: Stage) -> str:
    """Reward and gold score against the distance from the SFT policy, evaluation by evaluation."""
    held = [row for row in stage.evaluations if finite(row.get('kl')) is not None]
    kl = [finite(row['kl']) for row in held]
    lines = {name: (kl, [finite(row.get(key)) for row in held]) for name, key in (
        ('reward', 'reward'), ('gold', 'gold_deviations')) if any(key in row for row in held)}
    for name, values in stage.figures.get('policies', {}).items():
        if finite(values.get('kl_bound')) is not None:
            lines[f'{called(name)}, gold, test'] = [finite(values['kl_bound'])], [finite(values.get('gold_deviations'))]
    budget = finite(stage.config.get('kl_budget'))
    near = budget is not None and budget <= 1.5 * max(kl, default=0)
    return plots.lines(lines, 'KL, nats an answer', 'deviations of SFT answers',
                       limit=(budget, 'KL budget') if near else None) if len(held) > 1 else ''


# Numbers beside yardsticks.

def columns(by_name: Mapping[str, Mapping[str, Any]], *left_out: str) -> list[str]:
    """What is compared: keys that are a number anywhere, the model's own first."""
    kinds = dict.fromkeys(kind for values in by_name.values() for kind, value in values.items()
                          if kind not in left_out and finite(value) is not None)
    return sorted(kinds, key=lambda kind: kind != 'model')


def split(stage: Stage) -> str:
    return f'the {stage.figures.get("split")} split'


def compared(by_name: Mapping[str, Mapping[str, Any]], kinds: list[str], what: str, show: Callable[[Any], str],
             count: str) -> Table:
    """A row for each name: the numbers that are compared, and of how many they are."""
    return Table([what, *map(called, kinds), count],
                 [[name, *(show(values.get(kind)) for kind in kinds), number(values.get(count))]
                  for name, values in by_name.items()])


def dots(by_name: Mapping[str, Mapping[str, Any]], kinds: list[str], x: str) -> str:
    return plots.dots({name: {called(kind): finite(values.get(kind)) for kind in kinds}
                       for name, values in by_name.items()}, x)


def bits_per_byte(stage: Stage) -> Part:
    title, texts = 'Bits per byte beside yardsticks', stage.figures.get('bits_per_byte')
    if not texts:
        return unmeasured(title, stage)
    kinds = columns(texts, 'bytes')
    note = (f'Fewer is better. Each row is of the same bytes of {split(stage)}; "works" are all whole works together. '
            'The trigrams were fitted on the training text.')
    if context := stage.figures.get('context'):
        note += f' The model\'s context {context}.'
    return Part(title, note, plots=[('Further left is better', dots(texts, kinds, 'bits per byte'))],
                table=compared(texts, kinds, 'text', decimal, 'bytes'))


def answer_nats(stage: Stage) -> Part:
    title, nats = 'Answers beside the parent', stage.figures.get('answer_nats')
    if not nats:
        return unmeasured(title, stage)
    rows = [[name, decimal(values.get('model')), decimal(values.get('parent'))] for name, values in nats.items()]
    return Part(title, f'Cross-entropy of the answers of {split(stage)}, in nats a token. Fewer is better.',
                table=Table(['source', 'this model', 'its parent'], rows))


def choices(stage: Stage) -> Part:
    title, found = 'Labels beside yardsticks', stage.figures.get('choices')
    if not found:
        return unmeasured(title, stage)
    kinds = columns(found, 'rows', 'labels')
    return Part(title, f'How often the likeliest of the labels is the right one, on {split(stage)}.',
                plots=[('Further right is better', dots(found, kinds, 'share of right labels'))],
                table=compared(found, kinds, 'source', percent, 'rows'))


def accuracy(stage: Stage) -> Part:
    title, pairs = 'Pairs in the right order beside yardsticks', stage.figures.get('pairs')
    if not pairs:
        return unmeasured(title, stage)
    gaps = sorted(pairs, key=float)
    kinds = columns(pairs, 'pairs')
    lines = {called(kind): ([float(gap) for gap in gaps], [finite(pairs[gap].get(kind)) for gap in gaps])
             for kind in kinds}
    return Part(title, 'Of two answers whose mean ratings differ by more than the gap, how often the better one scores '
                'higher. "One rater" is how often a single person\'s ratings agree with the mean of the others.',
                plots=[('Higher is better', plots.lines(lines, 'gap of mean ratings', 'share in the right order',
                                                        ticks=[float(gap) for gap in gaps]))],
                table=compared({f'more than {gap}': pairs[gap] for gap in gaps}, kinds, 'gap', percent, 'pairs'))


def calibration(stage: Stage) -> Part:
    title, found = 'Calibration', stage.figures.get('calibration')
    if not found:
        return unmeasured(title, stage)
    lines = {}
    for name, suffix in (('as trained', ''), ('after one temperature', '_after')):
        filled = [part for part in found['bins'] if finite(part.get(f'confidence{suffix}')) is not None]
        lines[name] = [part[f'confidence{suffix}'] for part in filled], [part[f'accuracy{suffix}'] for part in filled]
    note = (f'Expected calibration error: {percent(found.get("ece"))} as trained, {percent(found.get("ece_after"))} '
            f'once margins are divided by one temperature, {decimal(found.get("temperature"))}, fitted on validation '
            'pairs.')
    rows = [[f'{part["low"]:.2f} to {part["high"]:.2f}', number(part.get('count')), percent(part.get('accuracy')),
             number(part.get('count_after')), percent(part.get('accuracy_after'))] for part in found['bins']]
    return Part(title, note, plots=[('Reliability: on the dashed line, confidence says how often it is right',
                                     plots.reliability(lines))],
                table=Table(['confidence', 'pairs', 'right', 'pairs, after', 'right, after'], rows))


def policies(stage: Stage) -> Part:
    title, found = 'Policies beside each other', stage.figures.get('policies')
    if not found:
        return unmeasured(title, stage)
    note = (f'Answers to the same {number(stage.figures.get("prompts"))} prompts of {split(stage)}. Deviations are '
            "those of the SFT policy's own answers, with their standard error. Best of N is the one of N SFT answers "
            'that the scorer likes most.')
    if gold := stage.figures.get('gold_scorer'):
        note += (f' The gold scorer was fitted on {number(gold["rows"])} rated texts of gold_data; it orders '
                 f'{percent(gold["accuracy_gap_1"])} of new pairs as people do whose ratings are more than 1 apart.')
    shown = [kind for kind in POLICY_COLUMNS if any(finite(row.get(kind)) is not None for row in found.values())]
    return Part(title, note, table=Table(['policy', *(POLICY_COLUMNS[kind] for kind in shown)], [
        [called(name), *(_policy_cell(values, kind) for kind in shown)] for name, values in found.items()]))


def _policy_cell(values: Mapping[str, Any], kind: str) -> str:
    error = finite(values.get('gold_standard_error')) if kind == 'gold_deviations' else None
    return decimal(values.get(kind)) + (f' ± {decimal(error)}' if error else '')


# Texts.

def said(stage: Stage, key: str) -> Part:
    """What was said to each of the configured prompts."""
    samples = [Sample(*spoken(row.get('prompt', '')), [('', row[key], [])]) for row in stage.samples if key in row]
    return Part('What it says', samples=samples, absent='' if samples else 'no samples')


def liked(stage: Stage) -> Part:
    """The ends of the list of answers, which is in the order of their scores."""
    ends = [*stage.samples[:4], *stage.samples[4:][-4:]]
    return Part('What it likes, and what it does not', "Some of the SFT policy's answers: the best four and the worst "
                'four by this scorer, in deviations from their mean.', absent='' if ends else 'no samples',
                table=Table(['answer', 'score'], [[row['answer'], decimal(row['score'])] for row in ends]))


def side_by_side(stage: Stage) -> Part:
    """Answers of both policies to the same prompts; where prompts were configured, those of the policy alone."""
    samples = [Sample(*spoken(row['prompt']), [(called(who), row[who], _scores(row, who)) for who in ('sft', 'ppo')])
               for row in stage.figures.get('samples') or stage.samples if 'sft' in row and 'ppo' in row]
    if not samples:
        return said(stage, 'answer')
    return Part('SFT and PPO side by side', 'Answers to the same held-out prompts.', samples=samples[:SAMPLES])


def spoken(prompt: str) -> tuple[str, str]:
    """A prompt without the marks of the chat template: what was asked, and the beginning that it gave the answer."""
    *asked, begun = _MARK.split(prompt)
    return (' '.join(filter(None, asked)), begun) if asked else (prompt, '')


def _scores(row: Mapping[str, Any], who: str) -> list[tuple[str, str]]:
    return [(kind, decimal(row[f'{who}_{kind}'])) for kind in ('gold', 'reward') if f'{who}_{kind}' in row]


KINDS = {
    'pretrain': (bits_per_byte, language_curves, functools.partial(said, key='continuation')),
    'sft': (choices, answer_nats, answer_curves, functools.partial(said, key='answer')),
    'reward': (accuracy, calibration, ranking_curves, liked),
    'ppo': (policies, policy_curves, side_by_side),
}
