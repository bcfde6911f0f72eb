"""Manifests: what is written is read, whatever was done to the file is refused, and parents must fit."""

import dataclasses
import json

import pytest

from llm.errors import UserError
from llm.identity import digest
from llm.manifest import (Manifest, check_parent, lineage, lineage_lines, manifest_path, parent_record,
                          parse_reference, read, sealed_steps, write)

TOKENIZER = {'sha256': 'aa', 'vocab_size': 300, 'special_ids': {'pad': 0}, 'chat_template': 'quartet-1'}
MODEL = {'vocab_size': 300, 'model_dim': 16, 'norm': 'rmsnorm'}


def manifest(**changes) -> Manifest:
    fields = dict(
        stage='sft', identity='ab' * 32, model=MODEL, tokenizer=TOKENIZER, heads=['token'], reward=None,
        objective='next_token', data={'bible': 'cc'}, seed=1, mesh={'data': 8}, packages={'jax': '0.10.2'},
        git_commit='', parents={}, step=3, leaves={'params': {'w': {'fingerprint': [1, 2]}}})
    return Manifest(**{**fields, **changes})


def one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert word in message, message


def test_what_is_written_is_read(tmp_path):
    there = manifest(reward={'mean': 0.1, 'deviation': 1 / 3}, best=True)
    write(tmp_path, there)
    assert read(tmp_path, 3) == there
    assert [path.name for path in tmp_path.iterdir()] == ['3.manifest.json']


def test_sealed_steps_are_numbers_in_order(tmp_path):
    assert sealed_steps(tmp_path / 'nowhere') == []
    for step in (100, 20, 3):
        write(tmp_path, manifest(step=step))
    for name in ('7', '8.manifest.json.unfinished', '9.manifest.json.refused', 'x.manifest.json'):
        (tmp_path / name).write_text('')
    assert sealed_steps(tmp_path) == [3, 20, 100]


def test_every_flipped_bit_is_refused(tmp_path):
    write(tmp_path, manifest())
    path = manifest_path(tmp_path, 3)
    sound = path.read_bytes()
    said = json.loads(sound)
    for byte in range(len(sound)):
        damaged = bytearray(sound)
        damaged[byte] ^= 1 << byte % 7
        path.write_bytes(damaged)
        try:
            kept = read(tmp_path, 3)
        except UserError as error:
            assert '\n' not in str(error)
        else:  # white space between tokens says nothing
            assert dataclasses.asdict(kept) == {key: said[key] for key in said if key != 'sha256'}


def test_every_truncation_is_refused(tmp_path):
    write(tmp_path, manifest())
    path = manifest_path(tmp_path, 3)
    sound = path.read_bytes()
    for length in range(0, len(sound), 7):
        path.write_bytes(sound[:length])
        with pytest.raises(UserError) as error:
            read(tmp_path, 3)
        one_line(error, 'damaged', str(path))


def test_an_absent_manifest_names_the_sealed_steps(tmp_path):
    for step in (3, 5):
        write(tmp_path, manifest(step=step))
    with pytest.raises(UserError) as error:
        read(tmp_path, 4)
    one_line(error, '4.manifest.json', '3, 5')


@pytest.mark.parametrize('change, words', [
    ({'version': 9}, ['version=9', 'version=1']),
    ({'version': None}, ['version=None', 'version=1']),
    ({'novelty': 1}, ['damaged', 'novelty']),
])
def test_other_versions_and_fields_are_refused(tmp_path, change, words):
    fields = dataclasses.asdict(manifest()) | change
    manifest_path(tmp_path, 3).write_text(json.dumps({'sha256': digest(fields), **fields}))
    with pytest.raises(UserError) as error:
        read(tmp_path, 3)
    one_line(error, *words)


@pytest.mark.parametrize('text', ['[]', '3', '"x"', '{}', '\xff'])
def test_other_files_are_refused(tmp_path, text):
    manifest_path(tmp_path, 3).write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError) as error:
        read(tmp_path, 3)
    one_line(error, 'damaged')


FITS = dict(key='init_from', where='runs/x@3', stages=('sft',), head='token', model=MODEL,
            tokenizer=TOKENIZER)


def test_a_parent_that_fits_is_taken():
    check_parent(manifest(), **FITS)
    check_parent(manifest(model={'vocab_size': 9}, tokenizer={}), **FITS | {'model': None, 'tokenizer': None})


@pytest.mark.parametrize('change, words', [
    ({'stage': 'reward'}, ["'reward'", "'sft'"]),
    ({'heads': ['scalar']}, ["'scalar'", "'token'"]),
    ({'tokenizer': TOKENIZER | {'sha256': 'bb'}}, ['tokenizer.sha256', "'bb'", "'aa'"]),
    ({'tokenizer': TOKENIZER | {'special_ids': {'pad': 2}}},
     ['tokenizer.special_ids', "'pad': 2", "'pad': 0"]),
    ({'model': MODEL | {'vocab_size': 301}}, ['model.vocab_size', '301', '300']),
    ({'model': {'vocab_size': 300, 'model_dim': 16}}, ['model.norm', 'None', "'rmsnorm'"]),
    ({'model': MODEL | {'experts': 8}}, ['model.experts', '8', 'None']),
])
def test_a_parent_that_does_not_fit_is_refused(change, words):
    with pytest.raises(UserError) as error:
        check_parent(manifest(**change), **FITS)
    one_line(error, 'init_from=runs/x@3', 'give a', *words)


def test_references():
    assert parse_reference('runs/x') == ('runs/x', None)
    assert parse_reference('runs/x@120') == ('runs/x', 120)
    assert parse_reference('/data/me@work/x') == ('/data/me@work/x', None)
    assert parse_reference('/data/me@work/x@0') == ('/data/me@work/x', 0)
    for wrong in ('runs/x@', 'runs/x@last', 'runs/x@-1', '@3'):
        with pytest.raises(UserError) as error:
            parse_reference(wrong, 'reward_from')
        one_line(error, f'reward_from={wrong!r}', 'PATH@100')


def family(tmp_path):
    """base -> sft -> reward, and ppo from sft and reward; the ppo step's folder and manifest."""
    records = {}
    for name, parents in (('base', {}), ('sft', {'init_from': 'base'}), ('reward', {'init_from': 'sft'}),
                          ('ppo', {'init_from': 'sft', 'reward_from': 'reward'})):
        (tmp_path / name).mkdir()
        child = manifest(stage=name, identity=name * 8, data={'rows': name},
                         parents={role: records[parent] for role, parent in parents.items()})
        write(tmp_path / name, child)
        records[name] = parent_record(tmp_path / name, child)
    return tmp_path / 'ppo', child


def test_lineage_reaches_the_raw_data(tmp_path):
    folder, _ = family(tmp_path)
    chain = {role: manifest.stage for role, _, manifest in lineage(folder, 3)}
    assert chain == {'': 'ppo', 'init_from': 'sft', 'init_from.init_from': 'base', 'reward_from': 'reward',
                     'reward_from.init_from': 'sft', 'reward_from.init_from.init_from': 'base'}
    lines = lineage_lines(folder, 3)
    assert len(lines) == 6 and not any('\n' in line for line in lines)
    assert 'base' in lines[2] and '{"rows": "base"}' in lines[2]


def test_lineage_says_where_the_chain_is_broken(tmp_path):
    folder, _ = family(tmp_path)
    write(tmp_path / 'reward', manifest(stage='reward', identity='another'))
    manifest_path(tmp_path / 'base', 3).unlink()
    broken = {role for role, _, manifest in lineage(folder, 3) if manifest is None}
    assert broken == {'init_from.init_from', 'reward_from'}
    assert sum('not found' in line for line in lineage_lines(folder, 3)) == 2


def test_the_fingerprint_depends_on_every_leaf():
    assert manifest().fingerprint == manifest(step=9, seed=2).fingerprint
    changed = manifest(leaves={'params': {'w': {'fingerprint': [1, 3]}}})
    assert manifest().fingerprint != changed.fingerprint
