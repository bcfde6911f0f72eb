"""Whether a scorer orders pairs of answers as people do: a reward model's figures, beside yardsticks.

In: a `Run` of the reward stage, a function that scores token rows. Out: plain JSON, for `figures.json`.
Left out: the yardsticks and the calibration (`yardsticks`), the model (`stages.reward`).
"""

from collections.abc import Callable, Sequence
import itertools
import json
from typing import Any, NamedTuple

import numpy as np

from llm import figures
from llm import yardsticks
from llm.data import sources
from llm.errors import UserError
from llm.evaluate import spread
from llm.run import Run
from llm.yardsticks import calibration, in_order, lexicon, rater_agreement


class Rated(NamedTuple):
    """Different answers with their scores by people, in their groups."""

    texts: Sequence[str]
    prompts: Sequence[list[dict[str, str]]]  # messages
    ratings: Sequence[list[int]]  # one by one; empty where they are not known
    score_A: np.ndarray  # float64, by people; the mean where an answer was scored more than once
    group_A: np.ndarray  # int64: the number of its source and prompt


class Measured(NamedTuple):
    """What figures are of."""

    split: str
    test: Rated  # of that split
    validation: Rated


def measured(run: Run) -> Measured:
    """At most `figures.rows` answers of each source. Raises UserError where none fits a row after its prompt."""
    splits = figures.test_splits(run.config.data)
    test, validation = (readable(run, rated(run, each, run.config.figures.rows))
                        for each in (splits, dict.fromkeys(splits, 'validation')))
    if not test.texts:
        raise UserError(f'no answer to measure on fits seq_len={run.config.seq_len} after its prompt; allow longer '
                        f'rows, or set figures.rows=0')
    return Measured(figures.said(splits), test, validation)


def measure(run: Run, score: Callable[[dict[str, np.ndarray]], np.ndarray], gaps: Sequence[float],
            of: Measured) -> dict[str, Any]:
    """Share of pairs in people's order, by the gap of their scores, and how well the scorer knows it.

    A pair is any two answers to one prompt of the test split, also if they were never ranked side by side (so scores
    have to mean the same in all records of a prompt, as ratings do).

    Args:
      score: rows of tokens_BT and length_B -> the model's score of each.
      gaps: pairs count whose human scores differ by more than this.
    Returns: split; rows, the answers that were scored; pairs by gap: their number, and the share in order by the model,
      by a ridge regression fitted on the training split, by the lexicon and by single raters (None where people's
      ratings are not known one by one); calibration, over all pairs, its temperature from the validation split's.
    """
    split, test, validation = of
    scores = {'model': score(rows_of(run, test)), 'ridge': ridge(run, test.texts), 'lexicon': lexicon(test.texts)}
    pairs = ordered_pairs(test.score_A, test.group_A)
    gap = margins(test.score_A, pairs)
    fitted_on = margins(score(rows_of(run, validation)), ordered_pairs(validation.score_A, validation.group_A))
    by_gap = {f'{least:g}': {'pairs': int(np.sum(gap > least)),
                             **{name: in_order(margins(each, pairs[gap > least])) for name, each in scores.items()},
                             'raters': rater_agreement(test.ratings, pairs[gap > least]) if all(test.ratings) else None}
              for least in gaps}
    known = len(pairs) and len(fitted_on)
    return {'split': split, 'rows': len(test.texts), 'pairs': by_gap,
            'calibration': calibration(margins(scores['model'], pairs), fitted_on) if known else None}


def ridge(run: Run, texts: Sequence[str]) -> np.ndarray:
    """[texts] scores of a ridge regression on training answers; NaN where none of them has a word."""
    trained = rated(run, dict.fromkeys(run.config.data.sources, 'train'))
    chosen = figures.fitted_on(run, trained.texts)
    try:
        return yardsticks.ridge([trained.texts[index] for index in chosen], trained.score_A[chosen]).predict(texts)
    except ValueError:
        return np.full(len(texts), np.nan)


def rated(run: Run, splits: dict[str, str], most: int | None = None) -> Rated:
    """The answers of a split of each source, at most so many of each, of whole groups spread evenly; None: all."""
    data, flat, numbers = run.config.data, [], itertools.count()
    for name, split in splits.items():
        known = sources.single_ratings(data.sources[name], split, data.data_dir, run.progress)
        groups: dict[str, dict[str, Any]] = {}
        for record in figures.records(run, data, name, split, 'ranked'):
            group = groups.setdefault(json.dumps(record['messages']), {})
            for text, score in zip(record['answers'], record['scores']):
                group.setdefault(text, (record['messages'], known.get(text, []), []))[2].append(score)
        total = sum(map(len, groups.values()))
        kept = spread(list(groups.values()), len(groups) if most is None else max(1, most * len(groups) // total))
        found = [(text, *item, number) for group, number in zip(kept, numbers) for text, item in group.items()]
        flat += found if most is None else spread(found, most)
    texts, prompts, ratings, scores, group_A = zip(*flat) if flat else [()] * 5
    return Rated(texts, prompts, ratings, np.array([np.mean(each) for each in scores]), np.array(group_A, np.int64))


def readable(run: Run, answers: Rated) -> Rated:
    """Those that fit a row after their prompt."""
    kept = np.flatnonzero([len(_ids(run, messages, text)) <= run.config.seq_len
                           for messages, text in zip(answers.prompts, answers.texts)])
    return Rated(*([part[index] for index in kept] for part in answers[:3]), *(part[kept] for part in answers[3:]))


def _ids(run: Run, messages: list[dict[str, str]], text: str) -> list[int]:
    return run.tokenizer.encode_prompt(messages) + run.tokenizer.encode_answer(text)


def rows_of(run: Run, answers: Rated) -> dict[str, np.ndarray]:
    """tokens_BT int32, right-padded, and length_B int32 of all answers after their prompts."""
    coded = [_ids(run, messages, text) for messages, text in zip(answers.prompts, answers.texts)]
    tokens_BT = np.full((len(coded), run.config.seq_len), run.tokenizer.special_ids['pad'], np.int32)
    for row, ids in enumerate(coded):
        tokens_BT[row, :len(ids)] = ids
    return {'tokens_BT': tokens_BT, 'length_B': np.array([len(ids) for ids in coded], np.int32)}


def ordered_pairs(score_A: np.ndarray, group_A: np.ndarray) -> np.ndarray:
    """[pairs, 2] indices of answers of one group, the better one first; pairs of equal scores are left out."""
    found = [np.zeros((0, 2), np.int64)]
    order = np.argsort(group_A, kind='stable')
    for members in np.split(order, np.flatnonzero(np.diff(group_A[order])) + 1):
        one, two = members[np.stack(np.triu_indices(len(members), 1))]
        better = score_A[one] > score_A[two]
        pairs = np.stack([np.where(better, one, two), np.where(better, two, one)], axis=1)
        found.append(pairs[score_A[one] != score_A[two]])
    return np.concatenate(found)


def margins(score_A: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[pairs] float64: score of the first less that of the second."""
    score_A = np.asarray(score_A, np.float64)
    return score_A[pairs[:, 0]] - score_A[pairs[:, 1]]
