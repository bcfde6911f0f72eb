"""Our TFDS sets as built from the real packages: what the publications say of them, splits that do not leak.

The first run on a machine downloads four packages into the configs' data_dir; later ones only read.
"""

import collections

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from configs import base
from llm.config import SourceConfig
from llm.data import sources, splits
from llm.data.clean import fold, runs
from llm.data.datasets import reviews
from llm.data.sources import BadRows, content_sha256, materialize, records, size
from llm.door import from_dict
from llm.errors import UserError
from tests.data.conftest import silent

SPLITS = ('train', 'validation', 'test')
OF_REVIEWS = ('train', 'gold', 'validation', 'test')


@pytest.fixture(scope='session')
def read(data_dir):
    """read(tfds name) -> {split: records}, built if need be, each read once."""
    kept = {}

    def call(name):
        if name not in kept:
            source = from_dict(SourceConfig, base.source(tfds=name).to_dict())
            materialize(source, data_dir, silent)
            splits = OF_REVIEWS if name.startswith('reviews') else SPLITS
            kept[name] = {split: list(records(source, split, data_dir, BadRows(0.0))) for split in splits}
            assert all(size(source, split, data_dir) == len(rows) for split, rows in kept[name].items())
        return kept[name]
    return call


def shares(found, length=len):
    total = sum(length(row['text']) for rows in found.values() for row in rows)
    return {split: sum(length(row['text']) for row in rows) / total for split, rows in found.items()}


@pytest.mark.parametrize('name, documents, megabytes, opening', [
    # 42 works: 37 plays, the sonnets and four poems. 66 books.
    ('shakespeare', 42, 5.06, 'HAMLET, PRINCE OF DENMARK'),
    ('bible', 66, 4.17, 'Genesis\n1. In the beginning God created the heavens and the earth. 2. Now'),
])
def test_works_and_books_are_whole_and_in_one_split(read, name, documents, megabytes, opening):
    found = read(name)
    texts = [row['text'] for rows in found.values() for row in rows]
    assert len(texts) == len(set(texts)) == documents
    assert sum(len(text.encode()) for text in texts) / 1e6 == pytest.approx(megabytes, abs=0.02)
    assert sum(text.startswith(opening) for text in texts) == 1
    assert all(0.02 < shares(found)[split] < 0.06 for split in ('validation', 'test'))


def test_bible_keeps_chapters_and_verses(read):
    genesis, = (row['text'] for row in read('bible')['train'] if row['text'].startswith('Genesis\n'))
    assert genesis.count('\n') == 51  # the title and fifty chapters
    assert sum(row['text'].count('\n') - 1 for rows in read('bible').values() for row in rows) == 1189
    assert '`' not in genesis and "God's Spirit" in genesis


def test_works_and_books_keep_their_titles(read):
    titles = {name: [row['title'] for split in ('validation', 'test') for row in read(name)[split]]
              for name in ('bible', 'shakespeare')}
    assert set(titles['bible']) == {'Daniel', 'Romans', 'Acts', 'Job'}
    assert set(titles['shakespeare']) == {'twelfth_night', 'macbeth', 'julius_caesar', 'tempest'}
    assert all(row['text'].startswith(row['title'] + '\n') for row in read('bible')['test'])


def test_reviews_are_split_as_declared(read):
    found = shares(read('reviews/text'), lambda text: 1)
    assert found == pytest.approx({'train': 0.62, 'gold': 0.25, 'validation': 0.06, 'test': 0.07}, abs=0.01)


def test_near_copies_of_a_snippet_are_in_one_split(read):
    home = {fold(row['text']): split for split, rows in read('reviews/text').items() for row in rows}
    for copies in [('a small movie with a big impact.', 'a small movie with a big heart.'),
                   ('don\'t buy this player.', 'don\'t buy this thing.'),
                   ('awesome.', 'awesome!')]:
        assert len({home[copy] for copy in copies if copy in home}) == 1


def snippets(read, view):
    """split -> the snippets that the view shows of it."""
    taken = {'text': lambda row: [row['text']], 'write': lambda row: [row['messages'][1]['content']],
             'judge': lambda row: [row['messages'][0]['content'].removeprefix(reviews.JUDGE_PROMPT)],
             'clear': lambda row: [row['messages'][0]['content'].removeprefix(reviews.JUDGE_PROMPT)],
             'rank': lambda row: row['answers']}[view]
    return {split: [text for row in rows for text in taken(row)]
            for split, rows in read(f'reviews/{view}').items()}


@pytest.mark.parametrize('view', ['text', 'write', 'judge', 'clear', 'rank'])
def test_a_snippet_is_in_the_same_split_in_every_view(read, view):
    home = snippets(read, 'text')
    for split, texts in snippets(read, view).items():
        assert set(texts) <= set(home[split])
        assert all(set(texts).isdisjoint(home[other]) for other in OF_REVIEWS if other != split)


def test_ratings_are_every_raters_and_agree_with_the_other_views(read, data_dir):
    read('reviews/ratings')
    builder = reviews.Reviews(config='ratings', data_dir=data_dir, file_format='array_record')
    # Hutto & Gilbert 2014: 10,605 snippets of films, 3,708 of products.
    assert sum(split.num_examples for split in builder.info.splits.values()) == 10605 + 3708
    rows = [row for split in OF_REVIEWS[1:] for row in builder.as_data_source(split)]
    assert {row['domain'] for row in rows} == {b'film', b'product'}
    for row in rows:
        assert 14 <= len(row['ratings']) <= 29 and all(-4 <= rating <= 4 for rating in row['ratings'])
        assert sum(row['ratings']) / len(row['ratings']) == pytest.approx(float(row['mean']), abs=1e-5)
    means = {row['text'].decode(): float(row['mean']) for row in rows if row['domain'] == b'film'}
    for view, least in (('judge', 0.5), ('clear', 1.0 + 1e-6)):
        bounds = {'good': (least, 4), 'bad': (-4, -least)}
        judged = read(f'reviews/{view}')['validation']
        assert len(judged) > 400
        for row in judged:
            low, high = bounds[row['messages'][1]['content']]
            assert low <= means[row['messages'][0]['content'].removeprefix(reviews.JUDGE_PROMPT)] <= high
    assert all(means[answer] == pytest.approx(score) for row in read('reviews/rank')['test']
               for answer, score in zip(row['answers'], row['scores']))


def test_single_ratings_belong_to_the_ranked_answers(read, source, data_dir):
    known = sources.single_ratings(source(tfds='reviews/rank'), 'test', data_dir, silent)
    for row in read('reviews/rank')['test']:
        for answer, score in zip(row['answers'], row['scores']):
            assert np.mean(known[answer]) == pytest.approx(score, abs=0.01)
    assert sources.single_ratings(source(tfds='reviews/ratings'), 'test', data_dir, silent) == {}
    assert sources.single_ratings(source(jsonl='mine.jsonl'), 'test', data_dir, silent) == {}


def test_groups_have_four_snippets_with_others_in_each_round(read):
    for split, rows in read('reviews/rank').items():
        assert all(len(row['answers']) == len(row['scores']) == 4 for row in rows)
        assert {row['messages'][0]['content'] for row in rows} == {reviews.WRITE_PROMPT}
        assert len({frozenset(row['answers']) for row in rows}) == len(rows)
        films = collections.Counter(snippets(read, 'write')[split])
        ranked = collections.Counter(answer for row in rows for answer in row['answers'])
        assert all(ranked[text] <= reviews.ROUNDS * count for text, count in films.items())
        # Each round leaves out what does not fill a group.
        assert ranked.total() == reviews.ROUNDS * (films.total() // 4 * 4)


def test_a_group_has_a_snippet_of_each_quarter_of_the_ratings(read):
    for rows in read('reviews/rank').values():
        score_GR = np.array([row['scores'] for row in rows])
        lowest_first = np.sort(score_GR, axis=1)
        assert np.all(lowest_first[:, :-1].max(0) <= lowest_first[:, 1:].min(0))
        # A smaller K keeps the first answers of a group: of every quarter alike, but for chance (four deviations).
        quarter_GR = np.argsort(np.argsort(score_GR, axis=1), axis=1)
        share = [np.mean(quarter_GR[:, place] == quarter) for place in range(4) for quarter in range(4)]
        assert share == pytest.approx([0.25] * 16, abs=4 * (0.25 * 0.75 / len(rows)) ** 0.5)


def test_comparisons_link_all_films_of_a_split(read):
    for rows in read('reviews/rank').values():
        number = {text: index for index, text in enumerate({text for row in rows for text in row['answers']})}
        pairs = np.array([(number[row['answers'][0]], number[other]) for row in rows for other in row['answers'][1:]])
        graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(number), len(number)))
        assert connected_components(graph, directed=False)[0] == 1


def test_beginnings_are_two_or_three_words_of_a_snippet_of_the_split(read):
    written = snippets(read, 'write')
    for split, rows in read('reviews/begin').items():
        begun = {' '.join(text.split()[:count]) for text in written[split] for count in (2, 3)}
        starts = [row['messages'][1]['content'] for row in rows]
        assert set(starts) <= begun
        assert {len(start.split()) for start in starts} == {2, 3}
        assert all(row['messages'][1]['role'] == 'assistant' for row in rows)
        words = {word for start in starts for word in start.casefold().split()}
        assert words.isdisjoint({'great', 'good', 'bad', 'funny', 'best', 'worst', 'dull', 'awful', 'love'})
    assert len(read('reviews/begin')['test']) >= 300


def test_prompts_of_an_evaluation_split_are_in_no_other_and_there_once(read):
    said = {split: [' '.join(runs(row['messages'][1]['content'], 1)) for row in rows]
            for split, rows in read('reviews/begin').items()}
    for split in ('validation', 'test', 'gold'):
        assert len(set(said[split])) == len(said[split])
        assert all(set(said[split]).isdisjoint(said[other]) for other in said if other != split)
    assert len(set(said['train'])) < len(said['train'])  # as often as reviews begin so


def test_questions_stay_in_one_split_and_no_exchange_is_there_twice(read):
    pairs = {split: [tuple(message['content'] for message in row['messages']) for row in rows]
             for split, rows in read('exchanges').items()}
    assert sum(map(len, pairs.values())) == len(set().union(*pairs.values())) > 800
    asked = {split: {' '.join(runs(question, 1)) for question, _ in rows} for split, rows in pairs.items()}
    assert not asked['train'] & (asked['validation'] | asked['test'])
    assert not asked['validation'] & asked['test']
    assert all(len(rows) > 40 for rows in pairs.values())
    home = {question: split for split, rows in pairs.items() for question, _ in rows}
    assert home['Will you die?'] == home['Will you die'] == home['When will you die']


@pytest.mark.parametrize('tfds, expected', [('bible', 'test'), ('reviews/judge', 'test')])
def test_figures_are_measured_on_the_test_split_of_our_sets(read, source, data_dir, tfds, expected):
    read(tfds)
    assert sources.test_split(source(tfds=tfds), data_dir) == expected


def test_ratings_are_rated_records_when_their_mean_is_asked_for(read, data_dir):
    read('reviews/ratings')
    config = from_dict(SourceConfig, base.source(tfds='reviews/ratings', train_split='gold',
                                                 fields={'score': 'mean'}).to_dict())
    rows = list(records(config, 'train', data_dir, BadRows(0.0)))
    assert [row['text'] for row in rows] == [row['text'] for row in read('reviews/ratings')['gold']]
    assert all(set(row) == {'text', 'score'} and -4 <= row['score'] <= 4 for row in rows)


def test_split_of_ignores_capitals_and_is_uniform():
    assert splits.split_of('A Film ') == splits.split_of('a film')
    places = sorted(splits.fraction(str(number)) for number in range(1000))
    assert max(abs(place - (number + 0.5) / 1000) for number, place in enumerate(places)) < 0.05


@pytest.mark.parametrize('keys, split, message', [
    ({'tfds': 'no_such_set'}, 'train', r'tfds=no_such_set is not built in data_dir=.*tfds build'),
    ({'tfds': 'bibel'}, 'train', 'did you mean bible'),
    ({'tfds': 'reviews/ranc'}, 'train', 'not a view of reviews; did you mean rank'),
    ({'tfds': 'bible/x'}, 'train', 'use tfds=bible'),
    ({'tfds': 'bible:7.0.0'}, 'train', 'version 7.0.0 is not ours; use 2.0.0'),
    ({'tfds': 'bible', 'validation_split': 'valid'}, 'validation',
     'no split .valid.; set validation_split to one of train'),
])
def test_mistakes_about_sets_are_one_line(read, source, data_dir, keys, split, message):
    read('bible')
    with pytest.raises(UserError, match=message) as caught:
        list(records(source(**keys), split, data_dir, BadRows(0.0)))
    assert '\n' not in str(caught.value)


def test_a_part_of_a_split_is_a_split(read, source, data_dir):
    books = read('bible')['train']
    config = source(tfds='bible', train_split='train[:80%]', validation_split='train[80%:]')
    parts = [list(records(config, split, data_dir, BadRows(0.0))) for split in ('train', 'validation')]
    assert parts[0] + parts[1] == books and all(parts)
    assert len({content_sha256(config, split, data_dir) for split in ('train', 'validation')}) == 2


def test_a_set_that_is_not_built_says_so(source, tmp_path):
    with pytest.raises(UserError, match='tfds=bible is not built in data_dir'):
        size(source(tfds='bible'), 'train', str(tmp_path))
