"""Pairs of rated answers: which there are, and that a scorer's share of them in order is what it must be."""

import dataclasses
import json
import types

import numpy as np
import pytest

from configs import base
from llm import figures
from llm import pairs
from llm.config import DataConfig, FiguresConfig
from llm.door import from_dict
from llm.errors import UserError
from llm.phases import Phases
from llm.pairs import margins, measure, measured, ordered_pairs, rated, readable

LIKED, DISLIKED = ('warm moving fine bright', 'dull tedious flat grim')


@pytest.mark.parametrize('scores, groups, expected', [
    ([1.0, 2.0, 3.0], [0, 0, 0], {(1, 0), (2, 0), (2, 1)}),
    ([1.0, 2.0, 3.0, 0.0], [0, 1, 0, 1], {(2, 0), (1, 3)}),  # answers to different prompts are no pair
    ([1.0, 1.0, 2.0], [5, 5, 5], {(2, 0), (2, 1)}),  # nor are equal ones
    ([1.0], [0], set()), ([], [], set()),
])
def test_pairs_have_the_better_one_first(scores, groups, expected):
    found = ordered_pairs(np.array(scores), np.array(groups, np.int64))
    assert found.shape == (len(expected), 2) and {tuple(pair) for pair in found.tolist()} == expected
    assert (margins(np.array(scores), found) > 0).all()


class Words:
    """A tokenizer by words, as much as pairs ask of one."""

    special_ids = {'pad': 0}

    def encode_prompt(self, messages):
        return [1] + [2] * sum(len(message['content'].split()) for message in messages)

    def encode_answer(self, text):
        return [3 + LIKED.split().index(word) if word in LIKED.split() else 9 for word in text.split()] + [8]


def make_run(folder, records: list[dict], *, seq_len: int = 16, rows: int = 500):
    """A run of ranked records; a part of them is held out."""
    (folder / 'ranked.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    data = base.data(mine=base.source(jsonl=str(folder / 'ranked.jsonl'), holdout_percent=40.0))
    data.clean.update(duplicate_similarity=0.0, overlap_words=0)
    config = types.SimpleNamespace(data=from_dict(DataConfig, data.to_dict()), seq_len=seq_len,
                                   figures=FiguresConfig(rows, 1000_000))
    return types.SimpleNamespace(config=config, tokenizer=Words(), phases=Phases(), progress=lambda *counts: None,
                                 account=lambda *said: None)


def drawn_records(count: int, seed: int = 0) -> list[dict]:
    """Answers to one prompt that people like by how many of their words are liked ones."""
    draw, records = np.random.default_rng(seed), []
    for _ in range(count):
        liked = draw.permutation(5)[:3]
        answers = [' '.join(draw.permutation([*draw.choice(LIKED.split(), n), *draw.choice(DISLIKED.split(), 4 - n)]))
                   for n in liked]
        records.append({'prompt': 'say it', 'answers': answers, 'scores': (2.0 * liked - 4).tolist()})
    return records


def by_liked_words(sign: float):
    return lambda rows: sign * np.sum((rows['tokens_BT'] >= 3) & (rows['tokens_BT'] < 7), axis=1)


def test_right_wrong_and_constant_scorers(tmp_path):
    run = make_run(tmp_path, drawn_records(60))
    right, wrong, constant = (measure(run, by_liked_words(sign), (0.5, 2.0), measured(run))
                              for sign in (1.0, -1.0, 0.0))
    assert [found['pairs']['0.5']['model'] for found in (right, wrong, constant)] == [1.0, 0.0, 0.5]
    pairs_2 = right['pairs']['2']
    assert 0 < pairs_2['pairs'] < right['pairs']['0.5']['pairs']  # some differ by 2 exactly, which is not more
    assert pairs_2['ridge'] > 0.95 and pairs_2['lexicon'] > 0.9 and pairs_2['raters'] is None
    assert right['calibration']['temperature'] < 1 < wrong['calibration']['temperature']
    assert right['split'] == 'validation' and constant['calibration']['ece'] == 0.0


def test_an_answer_counts_once_and_across_the_records_of_its_prompt(tmp_path):
    records = [{'prompt': 'p', 'answers': ['a', 'b'], 'scores': [1, 2]},
               {'prompt': 'p', 'answers': ['b', 'c'], 'scores': [4, 0]},
               {'prompt': 'q', 'answers': ['a', 'c'], 'scores': [5, 6]}]
    run = make_run(tmp_path, records)
    run.config.data = dataclasses.replace(run.config.data, sources={
        'mine': dataclasses.replace(run.config.data.sources['mine'], holdout_percent=0.0)})
    whole = rated(run, {'mine': 'train'})
    assert list(zip(whole.texts, whole.score_A, whole.group_A)) == [
        ('a', 1.0, 0), ('b', 3.0, 0), ('c', 0.0, 0), ('a', 5.0, 1), ('c', 6.0, 1)]
    with pytest.raises(UserError, match='source mine has nothing to measure on in validation .*set figures.rows=0'):
        rated(run, {'mine': 'validation'})
    assert len(ordered_pairs(whole.score_A, whole.group_A)) == 4


def test_answers_longer_than_a_row_are_left_out(tmp_path):
    answers = ['one two three', 'one', 'two', 'one two', 'three']
    run = make_run(tmp_path, [{'prompt': 'p', 'answers': answers, 'scores': [1, 2, 3, 4, 5]}], seq_len=5)
    run.config.data = dataclasses.replace(run.config.data, sources={
        'mine': dataclasses.replace(run.config.data.sources['mine'], holdout_percent=0.0)})
    kept = readable(run, rated(run, {'mine': 'train'}))
    assert list(kept.texts) == ['one', 'two', 'one two', 'three'] and kept.score_A.tolist() == [2.0, 3.0, 4.0, 5.0]
    rows = pairs.rows_of(run, kept)
    assert rows['length_B'].tolist() == [4, 4, 5, 4] and rows['tokens_BT'].shape == (4, 5)
    assert rows['tokens_BT'][0].tolist() == [1, 2, 9, 8, 0]


@pytest.mark.parametrize('records, expected', [
    ([{'prompt': f'p {number}', 'answers': ['a', 'b'], 'scores': [1, 2]} for number in range(40)], [2] * 5),
    ([{'prompt': 'p', 'answers': [f'a {number}', f'b {number}'], 'scores': [1, 2]} for number in range(40)], [10])])
def test_at_most_so_many_answers_are_measured_and_groups_stay_whole(tmp_path, records, expected):
    run = make_run(tmp_path, records)
    found = rated(run, {'mine': 'train'}, 10)
    assert np.bincount(found.group_A).tolist() == expected
    assert len(rated(run, {'mine': 'train'}).texts) > 30


def test_the_ridge_is_fitted_on_as_much_as_is_asked_for(tmp_path):
    run = make_run(tmp_path, drawn_records(60))
    texts = rated(run, {'mine': 'train'}).texts
    run.config.figures = FiguresConfig(500, 1000)
    size = sum(len(texts[index].encode()) for index in figures.fitted_on(run, texts))
    assert 800 < size <= 1100 < sum(map(len, texts))


def test_answers_that_no_row_has_room_for_are_refused_in_one_line(tmp_path):
    run = make_run(tmp_path, drawn_records(20), seq_len=3)
    with pytest.raises(UserError, match='no answer to measure on fits seq_len=3 after its prompt; allow longer rows'):
        measured(run)


def test_a_row_of_another_schema_is_left_out_where_training_leaves_it_out(tmp_path):
    answers = [{'prompt': 'p', 'answers': ['one', f'two {number}'], 'scores': [1, 2]} for number in range(20)]
    run = make_run(tmp_path, [*answers, *({'text': f'no answer {number}'} for number in range(5))])
    with pytest.raises(UserError, match='source mine has text here, but this stage reads answers, messages, scores'):
        rated(run, {'mine': 'validation'})
    run.config.data = dataclasses.replace(run.config.data, max_bad_percent=30.0)
    found = [rated(run, {'mine': split}).texts for split in ('train', 'validation')]
    assert {text for texts in found for text in texts} == {'one', *(f'two {number}' for number in range(20))}


def test_answers_without_words_have_no_ridge(tmp_path):
    records = [{'prompt': 'p', 'answers': ['. !', '? -', f'; {"!" * number}'], 'scores': [1, 2, 3]}
               for number in range(20)]
    run = make_run(tmp_path, records)
    found = measure(run, by_liked_words(1.0), (0.5,), measured(run))
    assert np.isnan(found['pairs']['0.5']['ridge'])
