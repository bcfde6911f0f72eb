"""Figures: what is measured of which documents, and that a model's numbers are those of its evaluator."""

import dataclasses
import itertools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from llm import figures
from llm.config import DataConfig
from llm.data import corpus
from llm.data.prepare import prepare_text
from llm.door import from_dict
from llm.errors import UserError
from llm.execution import MeshConfig
from llm.pipeline import open_step, STAGES
from llm.sharding import AxisRules, batch_sharding, make_mesh
from llm.stages import sft
from tests import tiny


@pytest.fixture(scope='module')
def opened(finished_pipeline):
    """Stage -> (run, params) of its chosen step."""
    def make(stage: str):
        folder, = finished_pipeline.glob(f'{stage}-????????')
        run, _, params = open_step(str(folder), say=lambda line: None, progress=lambda *counts: None)
        return run, params
    return make


# Which documents.

def documents(**texts_by_title) -> list[dict[str, str]]:
    return [{'title': title, 'text': text} for title, text in texts_by_title.items()]


def test_works_have_equal_bytes_and_stand_apart_and_together():
    parts = figures.test_parts({'one': documents(A='a' * 9000, B='b' * 5000), 'two': documents(C='c' * 7000)}, 10**6)
    a, b, c = (letter * 5000 for letter in 'abc')
    assert parts == {'one/A': [a], 'one/B': [b], 'one': [a, b], 'two/C': [c], 'two': [c], 'works': [a, b, c]}


def test_a_note_among_works_does_not_cut_them():
    parts = figures.test_parts({'one': documents(A='a' * 9000, note='b'), 'two': documents(notice='c')}, 10**6)
    assert parts == {'one/A': ['a' * 9000], 'one': ['a' * 9000], 'two': ['c'], 'works': ['a' * 9000]}


def test_documents_of_one_title_stand_together():
    found = [*documents(A='a' * 9000), *documents(A='b' * 5000)]
    assert figures.test_parts({'one': found}, 10**6)['one/A'] == ['a' * 5000, 'b' * 5000]


def test_a_split_of_nothing_has_no_parts():
    assert figures.test_parts({'one': [], 'two': [{'text': ''}], 'three': documents(A='')}, 100) == {}


def test_a_cut_goes_through_no_character():
    parts = figures.test_parts({'one': documents(A='ab' * 3000, B='a\u00e9e' * 2000)}, 4098)
    assert parts['works'] == ['ab' * 2049, 'a\u00e9e' * 1024 + 'a']


def test_untitled_documents_fill_up_the_bytes():
    texts = [{'text': 'abc'}, {'text': 'def'}, {'text': 'ghi'}]
    assert figures.test_parts({'one': texts}, 5) == {'one': ['abc', 'de']}
    assert figures.test_parts({'one': texts}, 50) == {'one': ['abc', 'def', 'ghi']}
    many = [{'text': f'{number:03}'} for number in range(500)]
    assert figures.test_parts({'one': many}, 15) == {'one': ['000', '100', '200', '300', '400']}


def test_many_titles_are_a_source_like_any():
    many = documents(**{f't{number}': 'text' for number in range(50)})
    assert set(figures.test_parts({'one': many}, 1000)) == {'one'}


def test_long_works_are_cut_to_what_there_is_time_for():
    assert figures.test_parts({'one': documents(A='a' * 9000)}, 10)['works'] == ['a' * 10]


# Rows in batches.

@pytest.mark.parametrize('mesh', [(1, 1, 1), (8, 1, 1)])
@pytest.mark.parametrize('count', [0, 1, 8, 13])
def test_every_row_is_scored_once_and_in_order(mesh, count):
    made = make_mesh(MeshConfig(*mesh))
    run = types.SimpleNamespace(config=types.SimpleNamespace(batch_size=8), mesh=made,
                                rows_sharding=batch_sharding(made, AxisRules.from_config(tiny.EXEC.rules)))
    each = figures.over_rows(run, lambda params, batch: params * jnp.sum(batch['value_BT'], axis=1))
    value_BT = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    np.testing.assert_array_equal(each(2.0, {'value_BT': value_BT}), 2 * value_BT.sum(axis=1))


# The language model.

def test_a_model_that_knows_nothing_pays_log_v_for_each_token_that_counts(opened):
    run, params = opened('pretrain')
    nothing = jax.tree.map(jnp.zeros_like, params)
    sequences = [([1, 9, 8, 7], [0, 1, 0, 1]), ([1, *range(9, 109)], [0] + [1] * 100), ([1], [0])]
    nats = figures.reader(run)(nothing, sequences)
    np.testing.assert_allclose(nats, np.array([2, 100, 0]) * math.log(run.tokenizer.vocab_size), rtol=1e-6)
    read = figures.reader(run)
    assert read(nothing, [([1], [0])]).tolist() == [0] and read(nothing, []).shape == (0,)


def test_the_reader_sees_what_the_evaluator_sees(opened):
    """Windows of `seq_len` beginning at each document's start: equal where a row begins with the document."""
    run, params = opened('sft')
    chats = sft.chats(run, run.config.data, 'chats', 'validation')
    coded = [chat for chat in map(run.tokenizer.encode_chat, chats) if len(chat[0]) <= run.config.seq_len]
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, eval_rows=10_000))
    expected = STAGES['sft'].evaluator(run)(params)['next_token']
    count = sum(sum(learn) for _, learn in coded)
    assert figures.reader(run)(params, coded).sum() / count == pytest.approx(expected, rel=1e-5)


def test_a_sequence_costs_the_same_alone_and_beside_others(opened):
    run, params = opened('pretrain')
    read = figures.reader(run)
    sequences = [([1, *range(20, 20 + length)], [0] + [1] * length) for length in (3, 40, 90, 7)]
    together, alone = read(params, sequences), [read(params, [sequence])[0] for sequence in sequences]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_bits_per_byte_of_every_coder(opened):
    run, params = opened('pretrain')
    found = figures.bits_per_byte(run, params, figures.test_documents(run))
    assert found['split'] == 'validation'  # JSON lines have no other
    values = found['bits_per_byte']['text']
    assert set(values) == {'bytes', 'model', 'gzip', 'kn_byte_trigram', 'kn_token_trigram'}
    assert all(0 < value < 9 for key, value in values.items() if key != 'bytes')
    # 31 words in any order, and a trigram of bytes has to tell them apart: log2(31) bits a word of about five letters.
    assert values['kn_byte_trigram'] < 2 < values['model']
    nothing = STAGES['pretrain'].figures(run, jax.tree.map(jnp.zeros_like, params))['bits_per_byte']['text']
    rows = prepare_text('text', run.config.data.sources['text'], 'validation', run.tokenizer, data=run.config.data,
                        seq_len=32, cache_dir=run.cache_dir, progress=run.progress)
    tokens = rows.meta['tokens'] - 2 * rows.meta['records']  # neither bos nor eos
    assert nothing['model'] == pytest.approx(tokens * math.log2(run.tokenizer.vocab_size) / nothing['bytes'], rel=1e-5)
    assert {key: value for key, value in nothing.items() if key != 'model'} == {
        key: value for key, value in values.items() if key != 'model'}


def test_yardsticks_are_fitted_on_as_much_as_is_asked_for(opened):
    run, _ = opened('pretrain')

    def sizes(most: int) -> int:
        part = dataclasses.replace(run.config.figures, yardstick_bytes=most)
        chosen = figures.training_tokens(dataclasses.replace(run, config=dataclasses.replace(run.config, figures=part)))
        return sum(int(run.tokenizer.token_bytes_V[ids].sum()) for ids in chosen)
    assert 1000 - 20 < sizes(1000) <= 1000
    assert 1000 < sizes(10**6) == sizes(10**7) < 10**6


# Choices.

def write_choices(path, count: int, answers: tuple[str, ...]) -> DataConfig:
    """Chats whose answer is the word that is asked about; the last one is longer than a row."""
    chats = [[{'role': 'user', 'content': f'is it {answer} {number}'}, {'role': 'assistant', 'content': answer}]
             for number, answer in zip(range(count), itertools.cycle(answers))]
    chats.append([{'role': 'user', 'content': 'the king ' * 50}, chats[0][1]])
    path.write_text(''.join(json.dumps({'messages': messages}) + '\n' for messages in chats))
    data = base.data(mine=base.source(jsonl=str(path), holdout_percent=40.0))
    data.clean.duplicate_similarity = 0.0
    return from_dict(DataConfig, data.to_dict())


def test_choices_are_right_as_often_as_the_likeliest_label(opened, tmp_path):
    run, params = opened('sft')
    data = write_choices(tmp_path / 'choices.jsonl', 60, ('yes', 'no'))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, choices=data, data=data))
    found = sft.figures(run, params)
    values = found['choices']['mine']
    chats = [messages for messages in sft.chats(run, data, 'mine', 'validation') if len(messages[0]['content']) < 100]
    assert values['rows'] == len(chats) and values['labels'] == ['no', 'yes']
    assert values['tfidf_logistic'] == 1.0
    read = figures.reader(run)

    def cost(messages, label):
        whole = run.tokenizer.encode_chat([*messages[:-1], {'role': 'assistant', 'content': label}])
        return read(params, [whole])[0]
    right = [(cost(messages, 'yes') < cost(messages, 'no')) == (messages[-1]['content'] == 'yes') for messages in chats]
    assert values['model'] == np.mean(right)
    assert found['answer_nats']['mine']['model'] != found['answer_nats']['mine']['parent'] > 0


@pytest.mark.parametrize('labels, change, message', [
    (100, {}, 'choices.sources.mine has .* different answers; use one with 2 to 32'),
    (1, {}, 'choices.sources.mine has 1 different answers; use one with 2 to 32'),
    (2, {'seq_len': 4}, 'choices.sources.mine has no chat of seq_len=4 tokens or fewer; use shorter ones')])
def test_choices_that_cannot_be_measured_are_refused_before_the_stage_learns(opened, tmp_path, labels, change, message):
    run, _ = opened('sft')
    data = write_choices(tmp_path / 'choices.jsonl', 200, tuple(f'answer {number}' for number in range(labels)))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, choices=data, **change))
    with pytest.raises(UserError, match=message):
        sft.measured(run)


@pytest.mark.parametrize('stage', ['pretrain', 'sft', 'reward', 'ppo'])
def test_nothing_to_measure_on_ends_a_stage_before_it_learns(opened, monkeypatch, stage):
    run, _ = opened(stage)
    monkeypatch.setattr(STAGES[stage], 'Journal', lambda *args, **keywords: pytest.fail('the stage began'))
    monkeypatch.setattr(figures.corpus, 'read', lambda *args, **keywords: (iter([]), corpus.Account()))
    with jax.set_mesh(run.mesh), pytest.raises(UserError, match='has nothing to measure on in validation'):
        STAGES[stage].run(run)


def test_labels_that_no_training_chat_has_leave_the_linear_model_out(opened, tmp_path):
    run, params = opened('sft')
    data = write_choices(tmp_path / 'choices.jsonl', 20, ('yes', 'no'))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, choices=data))
    assert sft.figures(run, params)['choices']['mine']['tfidf_logistic'] is None


# A whole pipeline.

@pytest.mark.parametrize('stage', ['pretrain', 'sft', 'reward', 'ppo'])
def test_every_finished_stage_has_figures_of_its_chosen_step(finished_pipeline, stage):
    folder, = finished_pipeline.glob(f'{stage}-????????')
    found, result = (json.loads((folder / f'{name}.json').read_text()) for name in ('figures', 'result'))
    assert found['step'] == result['step'] and found['split'] == 'validation'
    assert result['phases']['figures'] > 0
    if stage == 'sft':
        assert found['choices']['choices']['labels'] == ['bad', 'good'] and found['choices']['choices']['rows'] > 0
