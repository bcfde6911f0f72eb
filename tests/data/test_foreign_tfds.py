"""A TFDS set that somebody else built, read from its files alone, with fields of its own."""

import json

import pytest
import tensorflow_datasets as tfds

from llm.data import sources
from llm.data.sources import BadRows, content_sha256, materialize, records, size
from llm.errors import UserError
from tests.data.conftest import silent


class SomebodysSet(tfds.core.GeneratorBasedBuilder):
    """Twenty texts under another name, two of them not UTF-8."""

    VERSION = tfds.core.Version('2.1.0')
    url_infos = None

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
            {'body': tfds.features.Text(), 'label': tfds.features.ClassLabel(num_classes=2)}))

    def _split_generators(self, dl_manager):
        texts = [f'text {number}' for number in range(18)] + [b'\xff', b'\xfe']
        rows = [(number, {'body': text, 'label': number % 2}) for number, text in enumerate(texts)]
        return {'train': iter(rows), 'test': iter(rows[:2])}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture
def folder(tmp_path):
    for name in ('a', 'b'):
        tfds.disable_progress_bar()
        SomebodysSet(data_dir=str(tmp_path / name), file_format='array_record').download_and_prepare()
    return tmp_path


def config(source):
    return source(tfds='somebodys_set', fields={'text': 'body'}, train_split='train[:50%]',
                  validation_split='train[50%:]')


def test_it_is_read_by_its_name_alone(folder, source):
    bad = BadRows(50.0)
    rows = [row['text'] for split in ('train', 'validation')
            for row in records(config(source), split, str(folder / 'a'), bad)]
    assert sorted(rows) == sorted(f'text {number}' for number in range(18))
    assert [line.split('row ')[1].split(': ')[1] for line in bad.named] == ['invalid UTF-8'] * 2
    assert size(config(source), 'train', str(folder / 'a')) == 10
    materialize(config(source), str(folder / 'a'), silent)  # nothing to build


def test_two_builds_have_one_content_hash(folder, source):
    assert len({content_sha256(config(source), 'train', str(folder / name)) for name in ('a', 'b')}) == 1
    assert content_sha256(config(source), 'train', str(folder / 'a')) != content_sha256(
        config(source), 'validation', str(folder / 'a'))


@pytest.mark.parametrize('chooses, expected', [
    ('train[50%:]', 'test'), ('test', 'validation'), ('test[:50%]', 'validation')])
def test_figures_are_not_called_test_where_the_test_split_chose_the_step(folder, source, chooses, expected):
    read = source(tfds='somebodys_set', fields={'text': 'body'}, validation_split=chooses)
    assert sources.test_split(read, str(folder / 'a')) == expected


def test_another_file_format_is_refused(folder, source):
    info, = folder.glob('a/somebodys_set/*/dataset_info.json')
    info.write_text(json.dumps({**json.loads(info.read_text()), 'fileFormat': 'tfrecord'}))
    with pytest.raises(UserError, match='stored as tfrecord, which needs TensorFlow; build it'):
        size(config(source), 'train', str(folder / 'a'))
