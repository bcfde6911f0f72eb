"""The order is a pure function of the position: every epoch a new permutation, mixtures by weight."""

import dataclasses

import numpy as np
import pytest

from llm.data.order import Mixture
from llm.errors import UserError


class Numbered:
    """Rows that say who they are."""

    def __init__(self, name: int, length: int):
        self._name, self._length = name, length

    def __len__(self):
        return self._length

    def rows(self, indices):
        return {'index_B': np.asarray(indices, np.int32), 'name_BT': np.full((len(indices), 2), self._name)}


def mixture(seed=0, weights=(1.0, 3.0)):
    rows = {'few': Numbered(7, 5), 'many': Numbered(8, 40)}
    return Mixture(rows, dict(zip(rows, weights)), seed)


def indices(stream, start, stop):
    return stream.rows(np.arange(start, stop))['index_B'].tolist()


def test_each_epoch_is_another_permutation():
    stream = Mixture({'only': Numbered(0, 10)}, {'only': 1.0}, 0)
    epochs = [indices(stream, 10 * epoch, 10 * epoch + 10) for epoch in range(6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_any_position_can_be_read_alone_and_in_any_order():
    whole = mixture().rows(np.arange(200))
    places = np.array([150, 3, 3, 77, 199, 0])
    for key, value in mixture().rows(places).items():
        np.testing.assert_array_equal(value, whole[key][places])


def test_seeds_give_different_orders_and_the_same_seed_the_same():
    assert indices(mixture(0), 0, 100) == indices(mixture(0), 0, 100)
    assert indices(mixture(0), 0, 100) != indices(mixture(1), 0, 100)


def test_shares_follow_the_weights_and_a_short_source_repeats():
    stream = mixture()
    names = stream.sources(np.arange(400))
    assert abs(names.count('few') - 100) <= 1
    read = stream.rows(np.arange(400))['name_BT'][:, 0]
    assert read.tolist() == [7 if name == 'few' else 8 for name in names]
    few = [index for index, name in zip(indices(stream, 0, 400), names) if name == 'few']
    assert all(sorted(few[at:at + 5]) == list(range(5)) for at in range(0, 95, 5))


def test_two_sources_of_one_length_are_shuffled_differently():
    stream = Mixture({'a': Numbered(0, 30), 'b': Numbered(1, 30)}, {'a': 1.0, 'b': 1.0}, 0)
    rows = stream.rows(np.arange(60))
    first, second = (rows['index_B'][rows['name_BT'][:, 0] == name].tolist() for name in (0, 1))
    assert sorted(first) == sorted(second) and first != second


@pytest.mark.parametrize('weight', [0.0, -1.0, float('nan')])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(UserError, match='source many has weight='):
        mixture(weights=(1.0, weight))


def phases(late_from, weights=(1.0, 3.0), late_weights=(3.0, 1.0)):
    rows = {'few': Numbered(7, 90), 'many': Numbered(8, 400)}
    return Mixture(rows, dict(zip(rows, weights)), 0, late_weights=dict(zip(rows, late_weights)), late_from=late_from)


def by_source(stream, length):
    """source -> the indices that it gives, in order."""
    found = stream.rows(np.arange(length))
    return {name: found['index_B'][found['name_BT'][:, 0] == name].tolist() for name in (7, 8)}


def test_late_weights_hold_from_their_position_on():
    names = phases(200).sources(np.arange(600))
    assert names[:200] == phases(0).sources(np.arange(200))
    assert abs(names[:200].count('few') - 50) <= 1
    assert abs(names[200:].count('few') - 300) <= 1


@pytest.mark.parametrize('late_from', [1, 2, 3, 7, 203])
def test_each_source_goes_on_where_it_was(late_from):
    plain, late = by_source(phases(0), 400), by_source(phases(late_from), 400)
    for source in plain:
        shared = min(len(plain[source]), len(late[source]))
        assert shared > 90
        assert plain[source][:shared] == late[source][:shared]


def test_late_positions_can_be_read_alone():
    whole = phases(64).rows(np.arange(200))
    places = np.array([150, 63, 64, 3, 199])
    for key, value in phases(64).rows(places).items():
        np.testing.assert_array_equal(value, whole[key][places])


def test_the_border_is_a_step_and_an_empty_late_weight_is_as_before(data, source):
    config = dataclasses.replace(data(), late_from_step=10, sources={
        'few': source(jsonl='x', weight=1.0, late_weight=6.0), 'many': source(jsonl='x', weight=3.0)})
    stream = Mixture.from_config({'few': Numbered(7, 90), 'many': Numbered(8, 400)}, config, 0, 12)
    expected = phases(120, late_weights=(6.0, 3.0)).sources(np.arange(400))
    assert stream.sources(np.arange(400)) == expected != phases(0).sources(np.arange(400))


def test_a_late_weight_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match='source few has late_weight=0'):
        phases(10, late_weights=(0.0, 1.0))
