"""What reaches a model: near-copies once, on one side, nothing of an evaluation split; an account that adds up."""

import json

import pytest

from llm.data import corpus
from llm.data.prepare import prepare_chats, prepare_text
from llm.data.sources import BadRows, records
from llm.errors import UserError
from tests.data.conftest import prose


@pytest.fixture
def jsonl(tmp_path, source):
    """jsonl(name, rows, held_out=None) -> SourceConfig with a file for each split."""
    def call(name, rows, held_out=None, **keys):
        for file, part in ((name, rows), (f'{name}_held_out', held_out)):
            if part is not None:
                (tmp_path / f'{file}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in part))
        if held_out is not None:
            keys['validation_files'] = str(tmp_path / f'{name}_held_out.jsonl')
        return source(jsonl=str(tmp_path / f'{name}.jsonl'), **keys)
    return call


def texts(*contents):
    return [{'text': content} for content in contents]


def chat(question, answer='yes', system=None):
    messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
    return {'messages': [{'role': 'system', 'content': system}] * bool(system) + messages}


def read(source, config, split='train', **how):
    """Records as a list, and the account."""
    found, account = corpus.read(source, split, config, BadRows(0.0), **how)
    return list(found), account


def test_neutral_cleaning_leaves_every_record(jsonl, data):
    rows = texts(*[prose(number % 3, 30) for number in range(9)], 'x ' * 50)
    mine = jsonl('mine', rows, rows)
    found, account = read(mine, data(sources={'mine': mine}))
    assert found == rows
    assert account.documents == account.kept == 10 and account.dropped == account.examples == {}


def test_the_account_adds_up(jsonl, data):
    shared = prose(100, 20)
    rows = texts('x', 'y' * 500, 'a b c d e ' * 4, *[prose(number // 2, 30) for number in range(8)],
                 shared, f'{prose(101, 20)}. {shared}. {prose(102, 20)}.')
    mine = jsonl('mine', rows, texts(shared))
    config = data(sources={'mine': mine}, min_chars=2, max_chars=400, max_repeated_share=0.5, duplicate_similarity=0.8,
                  overlap_words=13)
    found, account = read(mine, config)
    assert account.dropped == {'too_short': 1, 'too_long': 1, 'repetitive': 1, 'duplicate': 4, 'overlap': 1,
                               'overlap_passages': 1}
    assert account.documents == len(rows) == account.kept + sum(account.dropped.values()) - 1
    assert [row['text'] for row in found] == [*(prose(number, 30) for number in range(4)),
                                              f'{prose(101, 20)}. {prose(102, 20)}.']
    assert account.kept == 5
    assert account.chars == sum(len(row['text']) for row in rows)
    assert account.kept_chars == sum(len(row['text']) for row in found)
    assert account.examples['overlap'] == [' '.join(shared.split())[:160]]
    assert all(1 <= len(account.examples[reason]) <= 3 for reason in account.dropped)


def test_phrases_are_looked_up_once_for_all_sources_and_anew_when_a_file_changes(jsonl, data):
    mine, yours = (jsonl(name, texts(prose(1, 30)), texts(prose(number, 20))) for number, name in enumerate(('a', 'b')))
    config = data(sources={'mine': mine, 'yours': yours}, overlap_words=13)
    before = corpus.evaluation_phrases(config)
    assert len(before) == 16 and corpus.evaluation_phrases(config) is before
    jsonl('b', texts(prose(1, 30)), texts(prose(2, 21)))
    after = corpus.evaluation_phrases(config)
    assert len(after) == 17 and len(after & before) == 8


def test_a_source_is_kept_apart_from_the_evaluation_of_every_source(jsonl, data):
    secret = prose(7, 40)
    one = jsonl('one', texts(secret, prose(1, 40)), texts(prose(2, 40)))
    other = jsonl('other', texts(prose(3, 40)), texts(f'{prose(4, 9)} {secret} {prose(5, 9)}'))
    together = data(sources={'one': one, 'other': other}, overlap_words=13)
    assert [row['text'] for row in read(one, together)[0]] == [prose(1, 40)]
    assert len(read(one, data(sources={'one': one}, overlap_words=13))[0]) == 2
    # What is measured stays as it is.
    assert len(read(other, together, split='validation')[0]) == 1


def test_chats_are_dropped_whole_but_not_for_a_template(jsonl, data):
    system = prose(50, 30)
    rows = [chat(prose(number, 6), system=system) for number in range(20)] + [chat(prose(60, 20), system=system)]
    mine = jsonl('mine', rows, [chat(prose(61, 5), system=system), chat(prose(60, 20), 'no')])
    config = data(sources={'mine': mine}, overlap_words=13, duplicate_similarity=0.8)
    found, account = read(mine, config)
    assert found == rows[:20] and account.dropped == {'overlap': 1}


def test_prompts_may_repeat(jsonl, data):
    mine = jsonl('mine', [{'prompt': 'go on'}] * 5, [{'prompt': 'x'}])
    config = data(sources={'mine': mine}, duplicate_similarity=0.8)
    assert len(read(mine, config, may_repeat=True)[0]) == 5
    assert len(read(mine, config)[0]) == 1


def families(number):
    """Texts of forty words in three spellings each."""
    return [[text, text + ' indeed', text.upper()] for text in (prose(index, 40) for index in range(number))]


def test_near_copies_are_held_out_together(jsonl):
    rows = [copy for family in families(60) for copy in family]
    mine = jsonl('mine', texts(*rows), holdout_percent=30.0)

    def sides(similarity):
        return [{row['text'] for row in records(mine, split, '', BadRows(0.0), similarity=similarity)}
                for split in ('train', 'validation')]
    train, held_out = sides(0.8)
    assert train | held_out == set(rows) and not train & held_out
    assert all(set(family) <= train or set(family) <= held_out for family in families(60))
    assert 0.15 < len(held_out) / len(rows) < 0.45
    loose = sides(0.0)
    assert any(not set(family) <= loose[0] and not set(family) <= loose[1] for family in families(60))


def test_bad_rows_are_named_by_their_place_after_clustering(jsonl, prepared, data):
    mine = jsonl('mine', [chat(prose(number, 5)) for number in range(30)] + [{'prompt': 'x'}], holdout_percent=0.0)
    with pytest.raises(UserError, match='mine.jsonl:31: no message of the assistant'):
        prepared(prepare_chats, mine, seq_len=64, config=data(duplicate_similarity=0.8))


def test_normalised_text_is_what_is_tokenised(jsonl, prepared, tokenizer):
    rows = prepared(prepare_text, jsonl('mine', texts('cafe\u0301\r\nking\u200b'), holdout_percent=0.0), seq_len=64)
    assert tokenizer.decode(rows.document(0)) == 'café\nking'


def test_rows_carry_the_account_and_say_it(jsonl, prepared, data):
    mine = jsonl('mine', texts('x', prose(1, 20), prose(1, 20)), texts('z'))
    rows = prepared(prepare_text, mine, seq_len=16, config=data(min_chars=2, duplicate_similarity=0.8))
    assert rows.cleaning['dropped'] == {'too_short': 1, 'duplicate': 1}
    assert (rows.cleaning['documents'], rows.cleaning['kept'], rows.meta['records']) == (3, 1, 1)
    assert 'cleaned of 1 too_short, 1 duplicate' in rows.note


def test_another_cleaning_or_another_evaluation_split_is_another_corpus(jsonl, prepared, data, tmp_path):
    mine = jsonl('mine', texts(prose(1, 20)), texts('z'))
    seen = set()
    apart = {'overlap_words': 13}
    for held_out, clean in [('a', {}), ('a', {'min_chars': 2}), ('a', apart), ('b', apart)]:
        config = data(sources={'mine': mine, 'other': jsonl('other', texts('q'), texts(held_out))}, **clean)
        prepared(prepare_text, mine, seq_len=16, config=config)
        seen |= {folder.name for folder in (tmp_path / 'cache').iterdir()}
    assert len(seen) == 4


def test_nothing_left_is_one_line(jsonl, prepared, data):
    mine = jsonl('mine', texts('x', 'y'), texts('z'))
    with pytest.raises(UserError, match=r'cleaning leaves none of 2 documents \(2 too_short\); loosen clean'):
        prepared(prepare_text, mine, seq_len=16, config=data(min_chars=2))
