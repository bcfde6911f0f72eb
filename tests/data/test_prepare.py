"""Packing loses nothing and mixes nothing; masks and targets; refusals; two processes at one corpus."""

import json
import subprocess
import sys

import numpy as np
import pytest

from llm.data.prepare import prepare_chats, prepare_prompts, prepare_ranked, prepare_text
from llm.data.tokenizer import train
from llm.errors import UserError
from tests.data.conftest import prose


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def chat(*contents):
    roles = ('user', 'assistant') * len(contents)
    return {'messages': [{'role': role, 'content': content} for role, content in zip(roles, contents)]}


@pytest.fixture
def jsonl(tmp_path, source):
    """jsonl(rows) -> SourceConfig that trains on all of them."""
    return lambda rows: source(jsonl=write(tmp_path / 'rows.jsonl', rows), holdout_percent=0.0)


TEXTS = [prose(number, words) for number, words in enumerate((1, 30, 3, 200, 7, 12, 64, 5))]
CHATS = [chat(prose(number, 3), prose(number + 100, 1 + number % 17)) for number in range(60)]


def segments(rows):
    """(tokens, targets, mask, positions) of every piece in every row."""
    batch = rows.rows(np.arange(len(rows)))
    for row in range(len(rows)):
        for segment in range(1, batch['segments_BT'][row].max() + 1):
            here = batch['segments_BT'][row] == segment
            yield tuple(batch[f'{key}_BT'][row][here] for key in ('tokens', 'targets', 'mask', 'positions'))


@pytest.mark.parametrize('seq_len', [2, 8, 33, 1000])
def test_every_token_of_a_text_is_predicted_once_from_its_own_document(jsonl, prepared, tokenizer, seq_len):
    rows = prepared(prepare_text, jsonl([{'text': text} for text in TEXTS]), seq_len=seq_len)
    documents = [tokenizer.encode_document(text)[0] for text in TEXTS]
    tokens, pairs = [], []
    for piece, targets, mask, positions in segments(rows):
        tokens += piece.tolist()
        pairs += [pair for pair, one in zip(zip(piece.tolist(), targets.tolist()), mask) if one]
        np.testing.assert_array_equal(positions, np.arange(len(piece)))
        np.testing.assert_array_equal(targets[mask == 0], tokenizer.special_ids['pad'])
    assert tokens == sum(documents, [])
    assert pairs == [pair for ids in documents for pair in zip(ids, ids[1:])]


def test_windows_are_full_but_the_last(jsonl, prepared, tokenizer):
    batch = (rows := prepared(prepare_text, jsonl([{'text': text} for text in TEXTS]), seq_len=16)).rows(
        np.arange(len(rows)))
    assert (batch['segments_BT'][:-1] > 0).all()
    padding = batch['segments_BT'] == 0
    assert (batch['tokens_BT'][padding] == tokenizer.special_ids['pad']).all()
    assert (batch['mask_BT'][padding] == 0).all()
    assert {key: value.dtype.name for key, value in batch.items()} == {
        'tokens_BT': 'int32', 'targets_BT': 'int32', 'mask_BT': 'float32', 'positions_BT': 'int32',
        'segments_BT': 'int32'}


def test_rows_do_not_depend_on_what_they_are_read_with(jsonl, prepared):
    rows = prepared(prepare_text, jsonl([{'text': text} for text in TEXTS]), seq_len=16)
    mixed = rows.rows(np.array([5, 0, 5]))
    for key, value in mixed.items():
        np.testing.assert_array_equal(value[[0, 2]], rows.rows(np.array([5, 5]))[key])
        np.testing.assert_array_equal(value[1:2], rows.rows(np.array([0]))[key])


def test_every_chat_is_packed_whole_and_learned_as_the_template_says(jsonl, prepared, tokenizer):
    rows = prepared(prepare_chats, jsonl(CHATS), seq_len=64)
    expected, found = [], []
    for row in CHATS:
        ids, learn = tokenizer.encode_chat(row['messages'])
        expected.append((ids, [index for index, one in zip(ids, learn) if one]))
    for tokens, targets, mask, positions in segments(rows):
        found.append((tokens.tolist(), targets[mask > 0].tolist()))
        np.testing.assert_array_equal(positions, np.arange(len(tokens)))
    assert sorted(found) == sorted(expected)
    assert len(rows) < len(CHATS)


def test_first_fit_leaves_no_room_for_a_later_chat(jsonl, prepared):
    rows = prepared(prepare_chats, jsonl(CHATS), seq_len=64)
    used = (rows.rows(np.arange(len(rows)))['segments_BT'] > 0).sum(axis=1)
    first = [int((rows.rows(np.array([row]))['segments_BT'] == 1).sum()) for row in range(len(rows))]
    assert all(used[row] + later > 64 for row in range(len(rows)) for later in first[row + 1:])


def test_too_long_chats_are_counted_and_dropped(jsonl, prepared):
    rows = prepared(prepare_chats, jsonl([chat('a', prose(1, 200)), *CHATS[:5]]), seq_len=64)
    assert rows.meta['dropped'] == 1 and rows.meta['records'] == 5
    assert '1 longer than 64 tokens dropped' in rows.note


def test_nothing_short_enough_is_one_line(jsonl, prepared):
    with pytest.raises(UserError, match='nothing for train: all 60 records are longer than 4 tokens'):
        prepared(prepare_chats, jsonl(CHATS), seq_len=4)


RANKED = [{'prompt': 'story', 'answers': [prose(number + r, 2 + r) for r in range(2 + number % 4)],
           'scores': [float(r * (-1) ** number) for r in range(2 + number % 4)]} for number in range(8)]


def test_groups_are_cut_and_filled_up_to_the_number_of_answers(jsonl, prepared, tokenizer):
    rows = prepared(prepare_ranked, jsonl(RANKED), seq_len=48, answers=4)
    batch = rows.rows(np.arange(len(rows)))
    assert len(rows) == len(RANKED) and batch['tokens_BRT'].shape == (8, 4, 48)
    for row, record in enumerate(RANKED):
        kept = min(len(record['answers']), 4)
        assert batch['valid_BR'][row].tolist() == [r < kept for r in range(4)]
        assert batch['score_BR'][row, :kept].tolist() == record['scores'][:kept]
        for r in range(kept):
            ids = tokenizer.encode_prompt([{'role': 'user', 'content': 'story'}])
            ids += tokenizer.encode_answer(record['answers'][r])
            length = batch['length_BR'][row, r]
            assert batch['tokens_BRT'][row, r, :length].tolist() == ids
            assert (batch['tokens_BRT'][row, r, length:] == tokenizer.special_ids['pad']).all()
    assert batch['length_BR'][~batch['valid_BR']].tolist() == [0] * int((~batch['valid_BR']).sum())


def test_prompts_end_where_the_policy_begins(jsonl, prepared, tokenizer):
    rows = prepared(prepare_prompts, jsonl([{'prompt': 'story'}, chat('story', 'the king')]), seq_len=24)
    batch = rows.rows(np.arange(2))
    for row, ids in enumerate([tokenizer.encode_prompt([{'role': 'user', 'content': 'story'}]),
                               tokenizer.encode_prompt(chat('story', 'the king')['messages'])]):
        assert batch['tokens_BT'][row, :batch['length_B'][row]].tolist() == ids


@pytest.mark.parametrize('prepare, row, message', [
    (prepare_text, CHATS[0], 'has messages here, but this stage reads text'),
    (prepare_chats, {'text': 'x'}, 'has text here, but this stage reads messages'),
    (prepare_chats, RANKED[0], 'has answers, messages, scores here, but'),
    (prepare_prompts, RANKED[0], 'has answers, messages, scores here'),
])
def test_another_schema_is_refused_in_one_line(jsonl, prepared, prepare, row, message):
    with pytest.raises(UserError, match=f'source mine {message}') as caught:
        prepared(prepare, jsonl([row]), seq_len=32)
    assert '\n' not in str(caught.value)


def test_a_group_of_texts_is_refused(jsonl, prepared):
    with pytest.raises(UserError, match='this stage reads answers, messages, scores'):
        prepared(prepare_ranked, jsonl([{'text': 'x'}]), seq_len=32, answers=2)


def test_chat_without_an_answer_is_a_bad_row(jsonl, prepared):
    with pytest.raises(UserError, match='rows.jsonl:61: no message of the assistant'):
        prepared(prepare_chats, jsonl([*CHATS, {'prompt': 'x'}]), seq_len=64)


def test_bad_rows_are_noted_and_listed(jsonl, prepared, tmp_path):
    rows = prepared(prepare_chats, jsonl([*CHATS, {'prompt': 3}]), seq_len=64, max_bad_percent=5.0)
    assert '1 bad rows left out' in rows.note and 'rows.jsonl:61: field prompt is int' in rows.note
    listed, = (tmp_path / 'cache').glob('*/bad_rows.txt')
    assert listed.read_text().count('\n') == 1


def test_empty_sources_are_one_line(jsonl, prepared):
    with pytest.raises(UserError, match='nothing for train; give it at least one record'):
        prepared(prepare_text, jsonl([]), seq_len=32)
    with pytest.raises(UserError, match='nothing for validation; raise its holdout_percent=0.0'):
        prepared(prepare_text, jsonl([{'text': 'x'}]), seq_len=32, split='validation')
    with pytest.raises(UserError, match='nothing for train: 1 of 1 rows are bad'):
        prepared(prepare_text, jsonl([{'txt': 'x'}]), seq_len=32, max_bad_percent=100.0)


def test_a_failed_preparation_leaves_nothing_behind(jsonl, prepared, tmp_path):
    with pytest.raises(UserError):
        prepared(prepare_text, jsonl([{'txt': 'x'}]), seq_len=32)
    assert list((tmp_path / 'cache').iterdir()) == []


def test_prepared_rows_are_reused_until_something_changes(jsonl, prepared, tmp_path):
    texts = [{'text': text} for text in TEXTS]
    first = prepared(prepare_text, jsonl(texts), seq_len=16)
    folder, = (tmp_path / 'cache').iterdir()
    (folder / 'mark').touch()
    assert prepared(prepare_text, jsonl(texts), seq_len=16).sha256 == first.sha256
    assert (folder / 'mark').exists() and len(list((tmp_path / 'cache').iterdir())) == 1
    assert prepared(prepare_text, jsonl(texts), seq_len=17).sha256 != first.sha256
    assert prepared(prepare_text, jsonl(texts[1:]), seq_len=16).sha256 != first.sha256
    assert len(list((tmp_path / 'cache').iterdir())) == 3


def test_progress_ends_at_the_number_of_rows(jsonl, data, tokenizer, tmp_path):
    seen = []
    source = jsonl([{'text': str(number)} for number in range(1200)])
    prepare_text('mine', source, 'train', tokenizer, seq_len=16, data=data(),
                 cache_dir=str(tmp_path / 'cache'), progress=lambda *call: seen.append(call))
    assert [call[1:] for call in seen] == [(500, 0), (1000, 0), (1200, 1200)]
    assert {call[0] for call in seen} == {'prepare mine/train'}


_RACE = '''
import sys, time
sys.path.insert(0, {root!r})
from llm.config import DataConfig, SourceConfig
from llm.data.prepare import prepare_text
from llm.data.tokenizer import Tokenizer
source = SourceConfig(tfds=None, jsonl={jsonl!r}, text=None, fields={{}}, train_split='train',
                      validation_split='validation', validation_files=None, holdout_percent=0.0, weight=1.0)
tokenizer = Tokenizer.from_file({model!r})
def wait(what, done, total):
    print(done, flush=True)
    sys.stdin.readline()
rows = prepare_text('mine', source, 'train', tokenizer, seq_len=16,
                    data=DataConfig(sources={{}}, data_dir='unused', max_bad_percent=1.0),
                    cache_dir={cache!r}, progress=wait)
print(rows.sha256)
'''


def test_two_processes_may_prepare_one_corpus(jsonl, tmp_path, pytestconfig):
    train((prose(number, 40) for number in range(50)), 300, 10**6, str(tmp_path / 'a.model'))
    jsonl([{'text': text} for text in TEXTS])
    script = _RACE.format(root=str(pytestconfig.rootpath), jsonl=str(tmp_path / 'rows.jsonl'),
                          model=str(tmp_path / 'a.model'), cache=str(tmp_path / 'cache'))
    both = [subprocess.Popen([sys.executable, '-c', script], text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:  # both have begun, and neither has finished, before either goes on
        assert process.stdout.readline().strip() == str(len(TEXTS))
    ends = [process.communicate('\n', timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert ends[0] == ends[1] and len(ends[0].strip()) == 64
    assert len(list((tmp_path / 'cache').iterdir())) == 1
