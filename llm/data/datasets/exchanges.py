"""Short questions with their answers, as a TFDS set of chats.

In: the English part of the wheel `chatterbot-corpus` (BSD), YAML lists of lines. Out: {'messages', 'topic'}:
the first line asks, the second answers. An exchange is a document; all answers to one question, and to those that
are nearly the same, share a split.
Left out: exact repetitions (more than half of the 2,026 lists), and lines after the second, which are further
answers in some files and further turns in others.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds
import yaml

from llm.data import packages
from llm.data.clean import clusters
from llm.data.splits import SHARES, split_of

_PACKAGE = packages.Package('chatterbot-corpus', '1.3.3', 'chatterbot_corpus-1.3.3-py2.py3-none-any.whl',
                            '86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154')
_FOLDER = 'chatterbot_corpus/data/english/'
# Nearly the same, by eye: 'Will you die?' and 'When will you die', not 'What is your age' and 'What is your mood'.
_PHRASE_WORDS, _ALIKE = 2, 0.6


class Exchanges(tfds.core.GeneratorBasedBuilder):
    """Question-answer exchanges, split by a hash of the question or of the near-copy that stands for it."""

    VERSION = tfds.core.Version('2.0.0')
    url_infos = None  # no URLs here; TFDS's way to look for them needs a package that it does not declare

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=tfds.features.FeaturesDict(
            {'messages': tfds.features.Sequence({'role': text, 'content': text}), 'topic': text}))

    def _split_generators(self, dl_manager):
        del dl_manager  # it knows URLs, not packages
        archive = packages.fetch(_PACKAGE, self.data_path.parents[1] / 'downloads')
        found = list(_exchanges(archive))
        questions = [question for _, _, question, _ in found]
        home = [split_of(questions[first]) for first in clusters(questions, _ALIKE, _PHRASE_WORDS)]
        return {split: self._generate_examples([exchange for exchange, here in zip(found, home) if here == split])
                for split in SHARES}

    def _generate_examples(self, exchanges):
        for key, topic, question, answer in exchanges:
            yield key, {'topic': topic, 'messages': [{'role': 'user', 'content': question},
                                                     {'role': 'assistant', 'content': answer}]}


def _exchanges(archive) -> Iterator[tuple[str, str, str, str]]:
    """(key, topic, question, answer) of every exchange, each pair once."""
    seen = set()
    for path in packages.names(archive):
        if not (path.startswith(_FOLDER) and path.endswith('.yml')):
            continue
        topic = path.removeprefix(_FOLDER).removesuffix('.yml')
        for number, lines in enumerate(yaml.safe_load(packages.member(archive, path))['conversations']):
            question, answer = (line.strip() for line in lines[:2])
            if (question, answer) not in seen:
                seen.add((question, answer))
                yield f'{topic}-{number}', topic, question, answer
