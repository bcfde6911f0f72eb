"""Our exports, loaded by transformers with no flag: its class, its outputs, its tokens, and nothing that it remarks.

Models of every family come from a reference, through an import and a run; others are born here, with our tokenizer.
"""

import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from llm.data.tokenizer import Tokenizer
from llm.interop import export_hf, import_hf
from tests.model import models
from tests.parity import ours, references, runs

STRINGS = json.loads((pathlib.Path(__file__).parents[1] / 'data/hard_strings.json').read_text())
CHATS = [[{'role': 'user', 'content': 'What is  the capital of France? '}],
         [{'role': 'system', 'content': 'Be brief.\n'}, {'role': 'user', 'content': '<|eos \u00e9\u4e2d\n\n'},
          {'role': 'assistant', 'content': ' Paris.'}, {'role': 'user', 'content': ''}]]
PAD, END, UNK = 0, 2, 3  # of our tokenizers
# Model, head, the pad token of the export: it is no end of an answer for a scorer, whose run padded with that.
BORN = {'llama': (models.LLAMA, 'token', PAD), 'gpt2': (models.GPT2, 'token', PAD),
        'scorer': (models.LLAMA, 'scalar', PAD), 'scorer_that_padded_with_ends': (models.LLAMA, 'scalar', UNK)}
every_model = pytest.mark.parametrize('name', references.names('models'))
every_born = pytest.mark.parametrize('name', BORN)
pytestmark = references.needed


@pytest.fixture(scope='module')
def loaded(tmp_path_factory) -> pathlib.Path:
    """A folder of exports, with what transformers made of each."""
    folder, workdir = tmp_path_factory.mktemp('exports'), tmp_path_factory.mktemp('runs')
    (folder / 'texts.json').write_text(json.dumps({'strings': STRINGS, 'chats': CHATS}))
    for name in references.names('models'):
        source = references.FOLDER / 'models' / name / 'model'
        run = import_hf.import_model(str(source), str(workdir / name), mesh=(1, 1, 1), say=lambda line: None,
                                     progress=lambda what, done, total: None)
        write_inputs(folder / name, {batch: arrays['in'] for batch, arrays in references.expected(name).items()
                                     if batch != 'decode'})
        export_hf.export(str(run), str(folder / name / 'model'), say=lambda line: None)
    runs.train_tokenizer(folder / 'tokenizer.model')
    for name, (config, head, pad) in BORN.items():
        run = runs.sealed(workdir / f'born_{name}', config, head, folder / 'tokenizer.model', pads_with_end=pad != PAD)
        write_inputs(folder / f'born_{name}', {'text': born_batch(pad)})
        export_hf.export(f'{run}@0', str(folder / f'born_{name}' / 'model'), max_shard_gib=1e-4,
                         say=lambda line: None)
    subprocess.run([os.environ['PARITY_PYTHON'], '-m', 'tests.parity.reference.load', str(folder)], check=True)
    return folder


def write_inputs(folder: pathlib.Path, batches: dict[str, ours.Batch]) -> None:
    folder.mkdir()
    np.savez(folder / 'inputs.npz', **{f'{batch}/{key}': array for batch, arrays in batches.items()
                                       for key, array in arrays.items()})


def born_batch(pad: int) -> ours.Batch:
    """Two rows of text and an end, one of them padded."""
    place_T, length_B1 = np.arange(13), np.array([[13], [6]])
    tokens_BT = np.random.default_rng(0).integers(7, 300, (2, 13))
    tokens_BT = np.where(place_T < length_B1 - 1, tokens_BT, np.where(place_T < length_B1, END, pad))
    return {'input_ids': tokens_BT, 'attention_mask': (place_T < length_B1).astype(np.int64)}


def found(folder: pathlib.Path, name: str) -> dict:
    return json.loads((folder / name / 'found.json').read_text())


@pytest.mark.parametrize('name', [*references.names('models'), *(f'born_{name}' for name in BORN)])
def test_transformers_has_nothing_to_remark(loaded, name):
    seen = found(loaded, name)
    assert seen['said'] == [] and not any(seen['info'].values())
    assert seen['class'] == json.loads((loaded / name / 'model/config.json').read_text())['architectures'][0]


@every_model
def test_every_tensor_comes_back_bit_for_bit(loaded, name):
    source, target = references.FOLDER / 'models' / name / 'model', loaded / name / 'model'
    first, second = (load_file(folder / 'model.safetensors') for folder in (source, target))
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(array.view(np.uint32), second[key].view(np.uint32), err_msg=key)
    configs = [json.loads((folder / 'config.json').read_text()) for folder in (source, target)]
    assert configs[0]['architectures'] == configs[1]['architectures']
    assert configs[0]['model_type'] == configs[1]['model_type']


@every_model
def test_outputs_of_an_export_are_those_of_the_model_that_was_imported(loaded, name):
    with np.load(loaded / name / 'found.npz') as arrays:
        for batch, expected in references.expected(name).items():
            for key, wanted in expected.get('out', {}).items():
                np.testing.assert_allclose(arrays[f'{batch}/{key}'], wanted, rtol=0, atol=1e-5)


@every_born
def test_outputs_of_a_model_of_ours_are_the_same_there(loaded, name):
    config, head, pad = BORN[name]
    model, params = runs.drawn(config, head)
    batch = born_batch(pad)
    wanted = jax.jit(lambda params: ours.outputs(model, params, batch, ('logits',)))(params)['logits']
    with np.load(loaded / f'born_{name}' / 'found.npz') as arrays:
        logits = arrays['text/logits']
    assert logits.shape == wanted.shape
    counted = np.ones(len(wanted), bool) if head == 'scalar' else batch['attention_mask'] == 1
    np.testing.assert_allclose(logits[counted], jnp.asarray(wanted)[counted], rtol=0, atol=1e-4)
    assert found(loaded, f'born_{name}')['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(params))


@every_born
def test_our_tokenizer_is_the_same_there(loaded, name):
    tokenizer, seen = Tokenizer.from_file(str(loaded / 'tokenizer.model')), found(loaded, f'born_{name}')
    for text, ids in zip(STRINGS, seen['ids'], strict=True):
        assert ids == tokenizer.encode(text), repr(text)
    assert seen['special'] == {**{name: tokenizer.special_ids[name] for name in ('bos', 'eos')}, 'pad': BORN[name][2]}
    assert seen['chats'] == [tokenizer.encode_chat(chat)[0] for chat in CHATS]
    assert seen['prompts'] == [tokenizer.encode_prompt(chat) for chat in CHATS]
