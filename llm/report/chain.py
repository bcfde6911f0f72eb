"""The top of the page: every stage on a card, to be read in ten seconds.

In: the stages of a pipeline. Out: from what each was made, whether it is better than its parent and than the
yardsticks, where it stopped. Left out: everything that takes longer to read (`sections`).
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from llm.manifest import Manifest
from llm.report.folder import Stage
from llm.report.parts import decimal, duration, finite, number, percent, UNEXPECTED

# Held-out numbers that choose a step: what they are called, and whether more is better.
METRICS = {'bits_per_byte': ('bits per byte', False), 'next_token': ('nats a token of the answers', False),
           'k_wise': ('ranking loss, nats', False), 'reward': ('reward, in deviations', True),
           'gold': ('gold score', True)}
NAMES = {'model': 'this model', 'parent': 'its parent', 'gzip': 'gzip', 'kn_byte_trigram': 'byte trigram',
         'kn_token_trigram': 'token trigram', 'tfidf_logistic': 'TF-IDF + logistic', 'ridge': 'TF-IDF + ridge',
         'lexicon': 'VADER lexicon', 'raters': 'one rater', 'sft': 'SFT', 'ppo': 'PPO'}
NO_YARDSTICKS = ('parent', 'sft', 'raters')  # what a model began as, and people


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One of our numbers beside others of the same split; each of those with whether ours is better."""

    what: str
    ours: str
    others: list[tuple[str, str, bool]]


@dataclasses.dataclass(frozen=True)
class Card:
    """A stage in ten seconds."""

    name: str
    hash8: str
    parents: str
    sources: str
    label: str  # of the held-out number
    before: str
    after: str
    better: bool | None  # None: not finished
    verdict: Verdict | None
    ending: str
    time: str


def facts(stages: list[Stage], cards: list[Card]) -> list[tuple[str, str]]:
    """The whole pipeline in a few words."""
    ended = [card for card in cards if card.better is not None]
    left_out = [called(name) for name in NO_YARDSTICKS]
    verdicts = [better for card in cards if card.verdict for name, _, better in card.verdict.others
                if name not in left_out]
    said = [('stages finished', f'{len(ended)} of {len(cards)}'),
            ('better than the parent', f'{sum(card.better for card in ended)} of {len(ended)}')]
    if verdicts:
        said.append(('yardsticks beaten', f'{sum(verdicts)} of {len(verdicts)}'))
    said.append(('time', duration(sum(finite(stage.result.get('seconds')) or 0 for stage in stages))))
    if first := next((stage.manifest for stage in stages if stage.manifest), None):
        said += [('model', f'{number(parameters(first))} parameters, {first.model["num_layers"]} layers, '
                           f'{number(first.model["vocab_size"])} pieces'), ('seed', str(first.seed))]
    return said


def parameters(manifest: Manifest) -> int:
    """Of the model itself: the value model beside a policy is not counted."""
    return sum(math.prod(leaf['shape']) for path, leaf in manifest.leaves.get('params', {}).items()
               if not path.startswith('value/'))


def card(stage: Stage) -> Card:
    result = stage.result
    label, more = METRICS.get(result.get('metric'), (result.get('metric', ''), False))
    before, after = finite(result.get('before')), finite(result.get('after'))
    better = (bool(before is not None and after is not None and (after > before if more else after < before))
              if result else None)
    return Card(name=stage.name, hash8=stage.folder.name.rpartition('-')[2], parents=parents(stage),
                sources=sources(stage.config), label=label, before=decimal(before), after=decimal(after),
                better=better, verdict=verdict(stage), ending=ending(stage), time=duration(result.get('seconds')))


def unreadable(stage: Stage) -> Card:
    """In the place of a card that cannot be made."""
    return Card(name=stage.name, hash8='', parents='what cannot be read', sources='', label='', before='', after='',
                better=None, verdict=None, ending='a file of the run does not hold what was expected', time='')


def parents(stage: Stage) -> str:
    """What it began with: names of runs and steps."""
    named = {}
    for key, reference in stage.identity.get('parents', {}).items():
        folder, _, step = reference.rpartition('@')
        named[key] = f'{folder.rpartition("/")[2].rpartition("-")[0]} at step {step}'
    return ', judged by '.join(named[key] for key in sorted(named)) or 'nothing'


def sources(config: Mapping[str, Any]) -> str:
    """Sources, by their share of the training stream, and where it changes, by their later share."""
    data = config.get('data', {})
    found, step = data.get('sources', {}), data.get('late_from_step') or 0
    early = {name: source['weight'] for name, source in found.items()}
    late = early | {name: source['late_weight'] for name, source in found.items()
                    if source.get('late_weight') is not None}
    changes = 0 < step < config['stop_step'] and late != early
    return _shares(early) + (f'; after step {number(step)} from {_shares(late)}' if changes else '')


def _shares(weights: Mapping[str, float]) -> str:
    total = sum(weights.values())
    return ', '.join(f'{name} {percent(weight / total, 0)}' if len(weights) > 1 else name
                     for name, weight in sorted(weights.items(), key=lambda item: -item[1]))


def ending(stage: Stage) -> str:
    result = stage.result
    if not result:
        last = max((row.get('step', 0) for row in stage.rows), default=0)
        return f'not finished: at step {number(last)} of {number(stage.config.get("stop_step"))}'
    why = 'the last one configured' if result.get('why') == 'stop_step' else result.get('why', '')
    kept = f'step {number(result.get("step"))}' if result.get('step') else 'what it began with'
    return f'kept {kept}; stopped at {number(result.get("last_step"))}, {why}'


def verdict(stage: Stage) -> Verdict | None:
    """A stage's number of numbers, beside its yardsticks; None where they were not measured."""
    try:
        found = _MEASURED[stage.kind](stage.figures)
    except UNEXPECTED:  # the stage's own section says what is wrong
        return None
    if found is None or finite(found.values.get(found.ours)) is None:
        return None
    ours = finite(found.values[found.ours])
    others = [(called(name), found.show(value), value < ours if found.more else ours < value)
              for name, value in ((name, finite(value)) for name, value in found.values.items())
              if value is not None and name != found.ours and (name in NAMES or name.startswith('best_of'))]
    return Verdict(found.what, found.show(ours), others)


def called(name: str) -> str:
    return NAMES.get(name, name.replace('_', ' '))


@dataclasses.dataclass(frozen=True)
class _Compared:
    what: str
    values: Mapping[str, Any]
    ours: str
    more: bool
    show: Callable[[Any], str]


def _bits(figures: Mapping[str, Any]) -> _Compared | None:
    texts = figures.get('bits_per_byte', {})
    name = 'works' if 'works' in texts else next(iter(texts), None)
    what = 'whole works' if name == 'works' else name
    return _Compared(f'bits per byte, {what}, {figures["split"]} split', texts[name], 'model', False,
                     decimal) if name else None


def _labels(figures: Mapping[str, Any]) -> _Compared | None:
    return next((_Compared(f'right labels, {name}, {figures["split"]} split', values, 'model', True, percent)
                 for name, values in figures.get('choices', {}).items()), None)


def _pairs(figures: Mapping[str, Any]) -> _Compared | None:
    pairs = {gap: values for gap, values in figures.get('pairs', {}).items() if values['pairs']}
    gap = max(pairs, key=lambda gap: (float(gap) <= 1, float(gap)), default=None)
    return _Compared(f'right order, ratings more than {gap} apart, {figures["split"]} split', pairs[gap], 'model', True,
                     percent) if gap else None


def _gold(figures: Mapping[str, Any]) -> _Compared | None:
    policies = figures.get('policies', {})
    kl = finite(policies.get('ppo', {}).get('kl')) or 0.0
    return _Compared(f'gold score, {kl:.1f} nats from SFT, {figures["split"]} split',
                     {name: values.get('gold') for name, values in policies.items()}, 'ppo', True,
                     decimal) if policies else None


_MEASURED = {'pretrain': _bits, 'sft': _labels, 'reward': _pairs, 'ppo': _gold}
