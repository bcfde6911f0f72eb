"""What is measured of texts, by hand-worked cases; near-copies are found, whatever the order; overlaps are cut out."""

import random
import unicodedata

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from llm.config import CleanConfig
from llm.data import clean
from llm.errors import UserError
from tests.data.conftest import prose

ENGLISH = ('It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of '
           'foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light. ')
GERMAN = ('Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in seinem Bett zu einem '
          'ungeheueren Ungeziefer verwandelt. Er lag auf seinem panzerartig harten Rücken und sah seinen Bauch. ')


@pytest.mark.parametrize('before, after', [
    ('cafe\u0301', 'café'), ('one\r\ntwo\rthree\u2028four', 'one\ntwo\nthree\nfour'), ('a\fb', 'a\nb'),
    ('a\x00b\x1b[0m', 'ab[0m'), ('\ufeffzero\u200bwidth', 'zerowidth'), ('soft\u00adhyphen', 'softhyphen'),
    ('e\u200b\u0301', 'é'), ('a\n\n\nb', 'a\n\n\nb'), ('a\n\n \n\t\n\nb', 'a\n\n\nb'), ('tab\there', 'tab\there'),
    ('👩\u200d👧', '👩\u200d👧'), ('one\x1ctwo\x1fthree', 'one\ntwo\nthree')])
def test_normalised(before, after):
    assert clean.normalise(before) == after


@given(st.text(st.sampled_from('ae\u0301\r\n\t \u200b\ufeff\x00\u2028\u1100\u1161')))
def test_normalising_twice_changes_nothing_more(text):
    once = clean.normalise(text)
    assert clean.normalise(once) == once == unicodedata.normalize('NFC', once)


@pytest.mark.parametrize('text, share', [
    ('', 0.0), ('a b c d', 0.0), ('a b c d e f g h i j', 0.0),
    ('a b c d e A B, C d! e', 0.5),  # the second five are the first
    ('a a a a a a a a a a', 0.9),  # all but the first word stand in a phrase that was said before
    ('x a b c d e y a b c d e z', 5 / 13)])
def test_repeated_share(text, share):
    assert clean.repeated_share(text) == pytest.approx(share)


def test_language_share_is_of_letters_in_passages_of_the_language():
    assert clean.language_share(ENGLISH * 20, 'en') == 1.0
    assert clean.language_share(GERMAN * 20, 'en') == 0.0
    assert clean.language_share(ENGLISH * 40 + GERMAN * 20, 'en') == pytest.approx(2 / 3, abs=0.1)
    assert clean.language_share('Das ist ein kurzer Satz.', 'en') == 1.0  # too short to tell
    assert clean.language_share('12 ' * 500, 'en') == 1.0  # no letters


def test_an_unknown_language_is_one_line():
    with pytest.raises(UserError, match='clean.language=eng is not a language .*; did you mean en'):
        clean.language_share(ENGLISH, 'eng')


@pytest.mark.parametrize('text, keys, reason', [
    (' a ', {'min_chars': 2}, 'too_short'), ('ab', {'min_chars': 2}, None), ('', {}, 'too_short'),
    ('abc', {'max_chars': 2}, 'too_long'), ('ab', {'max_chars': 2}, None),
    ('a b c d e a b c d e', {'max_repeated_share': 0.4}, 'repetitive'),
    ('a b c d e a b c d e', {'max_repeated_share': 0.5}, None), ('a ' * 99, {}, None),
    (GERMAN * 5, {'language': 'en', 'min_language_share': 0.5}, 'language'),
    (GERMAN * 5, {'language': 'de', 'min_language_share': 0.5}, None)])
def test_faults(text, keys, reason):
    assert clean.fault(text, CleanConfig(**keys)) == reason


def groups(texts, *args, **keys):
    """The sets of texts that stand together, and the texts that stand for them."""
    first = clean.clusters(texts, *args, **keys)
    return ({frozenset(texts[index] for index in np.flatnonzero(first == one)) for one in set(first)},
            {texts[index] for index in first})


def copies(number):
    """Texts of sixty words, each with a copy whose last word is another, and one in capitals."""
    return [copy for text in (prose(index, 60) for index in range(number))
            for copy in (text, text.rsplit(' ', 1)[0] + ' otherwise', text.upper() + '!')]


def test_near_copies_are_together_and_others_apart():
    texts = copies(40)
    found, stand_for = groups(texts, 0.8)
    assert found == {frozenset(texts[at:at + 3]) for at in range(0, 120, 3)}
    assert stand_for == {min(group, key=clean.fold) for group in found}


def test_groups_do_not_depend_on_the_order():
    texts = copies(20)
    for seed in range(3):
        assert groups(random.Random(seed).sample(texts, len(texts)), 0.8) == groups(texts, 0.8)


def test_the_similarity_is_a_threshold():
    # 8 words, 4 phrases of five; of these two texts share 3 of 5.
    texts = ['a b c d e f g h', 'a b c d e f g x']
    assert len(groups(texts, 0.6)[0]) == 1
    assert len(groups(texts, 0.61)[0]) == 2


def test_short_texts_are_copies_when_their_words_are_equal():
    assert len(groups(['What a film!', 'what a film', 'What a plot!', '...', '!!!'], 0.8)[0]) == 4


def test_no_text_has_no_group():
    assert clean.clusters([], 0.8).shape == (0,)


def test_a_phrase_of_many_chats_is_no_sign_of_a_copy():
    texts = [prose(0, 60) + f' {prose(number, 8)}' for number in range(1, 13)]
    assert len(groups(texts, 0.6)[0]) == 1
    assert len(groups(texts, 0.6, templates=False)[0]) == 12


SAYING = 'the quick brown fox jumps over the lazy dog'


@pytest.mark.parametrize('text, left, gone', [
    ('Nothing of it. At all.', 'Nothing of it. At all.', []),
    (f'Before. So {SAYING}. After.', 'Before. After.', [f'So {SAYING}. ']),
    (f'Before\n"So {SAYING.upper()}!"\nAfter', 'Before\nAfter', [f'"So {SAYING.upper()}!"\n']),
    # A phrase across the border of two passages, and a number that belongs to its verse.
    ('One. 7. The quick brown. 8. Fox, jumps over. Two.', 'One. 7. The quick brown. 8. Fox, jumps over. Two.', []),
    ('1. One. 2. The quick brown fox. Jumps over the! 3. Two.', '1. One. 3. Two.',
     ['2. The quick brown fox. ', 'Jumps over the! ']),
    (f'{SAYING}.\n', '', [f'{SAYING}.\n']),
    (f'* * *\n{SAYING}', '', [SAYING])])
def test_passages_that_share_a_phrase_go(text, left, gone):
    phrases = set(clean.runs(SAYING, 6))
    assert clean.without(text, phrases, 6) == (left, gone)


@given(st.lists(st.sampled_from(['the quick brown fox', 'jumps over', 'a dog.', 'Ran!\n', '7. Here', '\n\n']),
                max_size=12))
def test_what_is_left_and_what_is_gone_are_the_text(parts):
    text, phrases = ' '.join(parts), {'quick brown fox jumps over'}
    left, gone = clean.without(text, phrases, 5)
    assert not left or len(left) + sum(map(len, gone)) == len(text)
    assert bool(gone) == bool(phrases & set(clean.runs(text, 5)))
