"""Rows from JSON lines and plain text: schemas, bad rows by file and line, globs, holdouts, refusals."""

import json

import pytest

from llm.data import sources
from llm.data.sources import BadRows, content_sha256, records, size
from llm.errors import UserError
from tests.data.conftest import prose

CHAT = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
ASKED = [{'role': 'user', 'content': 'q'}]


def write(path, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b''.join(line + b'\n' for line in lines))
    return str(path)


def read(source, split='train', max_bad_percent=0.0):
    bad = BadRows(max_bad_percent)
    found = list(records(source, split, 'unused', bad))
    bad.check()
    return found


def all_of(source, path, **keys):
    return read(source(jsonl=str(path), holdout_percent=0.0, **keys))


@pytest.mark.parametrize('row, record', [
    ({'text': 'x', 'other': 1}, {'text': 'x'}),
    ({'messages': CHAT}, {'messages': CHAT}),
    ({'prompt': 'q'}, {'messages': ASKED}),
    ({'prompt': 'q', 'chosen': 'b', 'rejected': 'a'},
     {'messages': ASKED, 'answers': ['b', 'a'], 'scores': [1.0, 0.0]}),
    ({'messages': ASKED, 'answers': ['a', 'b'], 'scores': [1, -2.5]},
     {'messages': ASKED, 'answers': ['a', 'b'], 'scores': [1.0, -2.5]}),
    ({'prompt': 'q', 'answers': ['a', 'b', 'c'], 'ranks': [2, 1, 3]},
     {'messages': ASKED, 'answers': ['a', 'b', 'c'], 'scores': [-2.0, -1.0, -3.0]}),
])
def test_schema_is_known_by_its_fields(tmp_path, source, row, record):
    assert all_of(source, write(tmp_path / 'a.jsonl', row)) == [record]


@pytest.mark.parametrize('row, why', [
    (b'{"text": "\xff"}', 'invalid UTF-8'),
    (b'{"text": "\\ud800"}', 'invalid UTF-8'),
    (b'{"text": "x"', 'not JSON'),
    (b'[' * 100_000, 'not JSON'),
    ([1], 'not an object'),
    ({}, 'it has none'),
    ({'body': 'x'}, 'no field text.*it has body'),
    ({'text': 3}, 'text is int'),
    ({'text': None}, 'text is NoneType'),
    ({'text': ''}, 'text is empty'),
    ({'messages': []}, 'messages is not a list'),
    ({'messages': 'x'}, 'messages is not a list'),
    ({'messages': [{'role': 'robot', 'content': 'x'}]}, 'role \'robot\''),
    ({'messages': [{'role': 'user'}]}, 'content is missing'),
    ({'prompt': 'q', 'chosen': 'x'}, 'rejected is missing'),
    ({'prompt': 'q', 'answers': ['a', 'b']}, 'two lists'),
    ({'prompt': 'q', 'answers': ['a', 'b'], 'scores': [1]}, 'two lists'),
    ({'prompt': 'q', 'answers': ['a'], 'scores': [1]}, 'fewer than two'),
    ({'prompt': 'q', 'answers': ['a', 'b'], 'scores': [1, float('nan')]}, 'finite'),
    ({'prompt': 'q', 'answers': ['a', 'b'], 'scores': [1, True]}, 'finite'),
    ({'answers': ['a', 'b'], 'scores': [1, 2]}, 'prompt is missing'),
])
def test_bad_row_is_named_by_file_and_line(tmp_path, source, row, why):
    path = write(tmp_path / 'a.jsonl', {'text': 'good'}, row, {'text': 'fine'})
    with pytest.raises(UserError, match=rf'1 of 3 rows are bad.*a.jsonl:2: .*{why}') as caught:
        all_of(source, path)
    assert '\n' not in str(caught.value)


def test_few_bad_rows_are_left_out_and_counted(tmp_path, source):
    path = write(tmp_path / 'a.jsonl', *[{'text': str(n)} for n in range(99)], b'nonsense', b'', b'  ')
    bad = BadRows(1.0)
    assert len(list(records(source(jsonl=path, holdout_percent=0.0), 'train', 'unused', bad))) == 99
    bad.check()
    assert bad.seen == 100 and bad.named == [f'{path}:100: not JSON']


def test_a_hopeless_file_stops_early(tmp_path, source):
    path = write(tmp_path / 'a.jsonl', *[b'nonsense'] * 5000)
    bad = BadRows(1.0)
    with pytest.raises(UserError, match='1000 of 1000 rows'):
        list(records(source(jsonl=path), 'train', 'unused', bad))


def test_byte_order_mark_is_no_text(tmp_path, source):
    path = write(tmp_path / 'a.jsonl', b'\xef\xbb\xbf{"text": "x"}')
    assert all_of(source, path) == [{'text': 'x'}]


def test_fields_are_renamed(tmp_path, source):
    path = write(tmp_path / 'a.jsonl', {'body': 'x'})
    assert all_of(source, path, fields={'text': 'body'}) == [{'text': 'x'}]
    with pytest.raises(UserError, match='fields.txt is not a field.*did you mean text'):
        all_of(source, path, fields={'txt': 'body'})


@pytest.mark.parametrize('row, fields, record', [
    ({'text': 'x', 'mean': 2}, {'score': 'mean'}, {'text': 'x', 'score': 2.0}),
    ({'text': 'x', 'score': -0.5}, {'score': 'score'}, {'text': 'x', 'score': -0.5}),
    ({'text': 'x', 'score': 1}, {}, {'text': 'x'}),  # nobody asked
    ({'text': 'x', 'title': 'King'}, {}, {'text': 'x', 'title': 'King'}),
    ({'text': 'x', 'title': 3}, {}, {'text': 'x'}),
    ({'text': 'x', 'name': 'King'}, {'title': 'name'}, {'text': 'x', 'title': 'King'})])
def test_scores_and_titles_of_texts(tmp_path, source, row, fields, record):
    assert all_of(source, write(tmp_path / 'a.jsonl', row), fields=fields) == [record]


@pytest.mark.parametrize('row', [{'text': 'x'}, {'text': 'x', 'mean': 'good'}, {'text': 'x', 'mean': True},
                                 {'text': 'x', 'mean': float('inf')}])
def test_a_text_without_the_score_that_is_asked_for_is_a_bad_row(tmp_path, source, row):
    with pytest.raises(UserError, match='field score is .*not a finite number'):
        all_of(source, write(tmp_path / 'a.jsonl', row), fields={'score': 'mean'})


def test_figures_of_files_are_of_their_validation_split(tmp_path, source):
    assert sources.test_split(source(jsonl=write(tmp_path / 'a.jsonl', {'text': 'x'})), 'unused') == 'validation'


def test_glob_reads_files_in_order_of_name(tmp_path, source):
    (tmp_path / 'deep').mkdir()
    write(tmp_path / 'deep' / 'c.jsonl', {'text': '3'})
    write(tmp_path / 'b.jsonl', {'text': '2'})
    write(tmp_path / 'a.jsonl', {'text': '1'})
    assert [row['text'] for row in all_of(source, tmp_path / '*.jsonl')] == ['1', '2']
    assert sorted(row['text'] for row in all_of(source, tmp_path / '**' / '*.jsonl')) == ['1', '2', '3']


@pytest.mark.parametrize('keys, message', [
    ({'jsonl': 'no/such.jsonl'}, 'jsonl=no/such.jsonl matches no file'),
    ({'text': 'no/*.txt'}, r'text=no/\*.txt matches no file'),
    ({'jsonl': __file__, 'validation_files': 'no.jsonl'}, 'validation_files=no.jsonl matches no file'),
])
def test_missing_file_is_one_line(source, keys, message):
    with pytest.raises(UserError, match=message):
        read(source(**keys), 'validation')


def test_files_have_no_test_split(tmp_path, source):
    with pytest.raises(UserError, match='no test split'):
        read(source(jsonl=write(tmp_path / 'a.jsonl', {'text': 'x'})), 'test')


@pytest.mark.parametrize('kind', ['jsonl', 'text'])
def test_holdout_is_disjoint_complete_and_stable(tmp_path, source, kind):
    texts = [prose(number, 8) + f' {number % 150}' for number in range(150)] * 2
    if kind == 'jsonl':
        path = write(tmp_path / 'a.jsonl', *[{'text': text} for text in texts])
        config = source(jsonl=path, holdout_percent=20.0)
    else:
        for number, text in enumerate(texts):
            (tmp_path / f'{number:04}.txt').write_text(text)
        config = source(text=str(tmp_path / '*.txt'), holdout_percent=20.0)
    train, held = ([row['text'] for row in read(config, split)] for split in ('train', 'validation'))
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(texts)
    assert 0.1 < len(held) / len(texts) < 0.3
    assert held == [row['text'] for row in read(config, 'validation')]


def test_validation_files_are_validation_and_nothing_else(tmp_path, source):
    config = source(jsonl=write(tmp_path / 'a.jsonl', *[{'text': str(n)} for n in range(50)]),
                    validation_files=write(tmp_path / 'v.jsonl', {'text': 'v'}))
    assert len(read(config)) == 50
    assert read(config, 'validation') == [{'text': 'v'}]


def test_one_text_file_holds_out_its_end_from_a_line_on(tmp_path, source):
    lines = [prose(number, 10) + ' é\n' for number in range(100)]
    (tmp_path / 'a.txt').write_text(''.join(lines))
    config = source(text=str(tmp_path / 'a.txt'), holdout_percent=10.0)
    (train,), (held,) = read(config), read(config, 'validation')
    assert train['text'] + held['text'] == ''.join(lines)
    assert train['text'].endswith('\n') and 5 <= held['text'].count('\n') <= 12


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path, source):
    (tmp_path / 'a.txt').write_bytes(b'fine')
    (tmp_path / 'b.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match='b.txt: invalid UTF-8'):
        read(source(text=str(tmp_path / '*.txt'), holdout_percent=0.0))


def test_content_hash_follows_content_and_not_place(tmp_path, source):
    def digest(path, **keys):
        return content_sha256(source(jsonl=str(path), **keys), 'train', 'unused')
    for name, text in (('a', 'x'), ('b', 'x'), ('c', 'y')):
        write(tmp_path / f'{name}.jsonl', {'text': text})
    assert digest(tmp_path / 'a.jsonl') == digest(tmp_path / 'b.jsonl')
    others = [digest(tmp_path / 'c.jsonl'), digest(tmp_path / '*.jsonl'),
              digest(tmp_path / 'a.jsonl', holdout_percent=9.0),
              digest(tmp_path / 'a.jsonl', fields={'text': 'b'})]
    assert len({digest(tmp_path / 'a.jsonl'), *others}) == 5


def test_size_of_files_is_not_known(source):
    assert size(source(jsonl='any'), 'train', 'unused') == 0
