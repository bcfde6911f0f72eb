"""What is imported and exported is the same, bit for bit: of every family and head, and of whole runs."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from llm import run as run_lib
from llm.data import tokenizer as tokenizers
from llm.errors import UserError
from llm.execution import MeshConfig
from llm.fingerprint import flatten
from llm.interop import config_json, export_hf, import_hf, layout, plan as planning
from llm.interop.families import FAMILIES
from llm.interop.targets import targets
from llm.manifest import read as read_manifest
from llm.sharding import make_mesh
from tests import tiny
from tests.interop import files

# A model of each family, small, with what sets it apart; GQA and not, tied and not.
_SMALL = {'hidden_size': 8, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 12,
          'max_position_embeddings': 16, 'vocab_size': 24}
_DECODER = {**_SMALL, 'num_key_value_heads': 1, 'head_dim': 4, 'rms_norm_eps': 1e-6, 'hidden_act': 'silu'}
_GEMMA = {**_DECODER, 'num_hidden_layers': 3, 'hidden_activation': 'gelu_pytorch_tanh', 'sliding_window': 4}
CONFIGS = {
    'gpt2': {'vocab_size': 24, 'n_positions': 16, 'n_embd': 8, 'n_layer': 2, 'n_head': 2},
    'llama': {**_DECODER, 'rope_theta': 5e5, 'rope_scaling': {
        'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8}},
    'llama tied, with biases': {**_DECODER, 'model_type': 'llama', 'num_key_value_heads': 2, 'attention_bias': True,
                                'mlp_bias': True, 'tie_word_embeddings': True},
    'mistral': {**_DECODER, 'sliding_window': 4},
    'qwen2': _DECODER,
    'qwen3': {**_DECODER, 'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 0},
    'gemma': {**_DECODER, 'hidden_act': 'gelu_pytorch_tanh'},
    'gemma2': {key: value for key, value in _GEMMA.items() if key != 'hidden_act'} | {'query_pre_attn_scalar': 9},
    'gemma3_text': {**{key: value for key, value in _GEMMA.items() if key != 'hidden_act'}, 'sliding_window_pattern': 2,
                    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}},
    'bert': _SMALL, 'roberta': _SMALL,
    'xlnet': {'vocab_size': 24, 'd_model': 8, 'n_layer': 2, 'n_head': 2, 'd_inner': 12},
    'vit': {**{key: value for key, value in _SMALL.items() if key not in ('vocab_size', 'max_position_embeddings')},
            'image_size': 8, 'patch_size': 4},
}
CASES = [(name, kind) for name, keys in CONFIGS.items()
         for kind in FAMILIES[keys.get('model_type', name)].heads]


def write_random(folder, name: str, kind: str) -> dict[str, np.ndarray]:
    """A folder of that family and class with drawn numbers, under the names that its class gives them."""
    keys = {'model_type': name, **CONFIGS[name], 'architectures': [kind]}
    scorer = FAMILIES[keys['model_type']].heads[kind] == 'scalar'
    keys['num_labels'] = 1 if scorer else 3
    described = config_json.decode(keys)
    family = FAMILIES[described.model_type]
    shapes = targets(described.model, described.head, tiny.execution(), make_mesh(MeshConfig(1, 1, 1)))
    theirs = {}
    for path, row in planning.rows(family, described.head).items():
        if path in shapes:
            stacked = path.startswith('layers/')
            shape = layout.their_shape(row.layout, shapes[path].shape[1:] if stacked else shapes[path].shape, row.of)
            theirs |= {row.name.replace('{layer}', str(layer)): shape
                       for layer in range(described.model.num_layers if stacked else 1)}
    if described.head in ('none', 'pooled'):
        theirs = {key.removeprefix(family.prefix): shape for key, shape in theirs.items()}
    arrays = files.tensors(0, theirs)
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(keys))
    files.write_shard(folder / 'model.safetensors', arrays)
    return arrays


@pytest.mark.parametrize('name, kind', CASES)
def test_every_class_is_written_as_it_was_read(name, kind, tmp_path):
    arrays = write_random(tmp_path / 'model', name, kind)
    described, params = import_hf.read_model(str(tmp_path / 'model'))
    assert config_json.decode(json.loads(json.dumps(
        config_json.encode(described.model, described.model_type, described.head)))) == described
    leaves = flatten(params)
    tensors = export_hf._tensors(FAMILIES[described.model_type], described.head, leaves)
    assert sorted(tensor.name for tensor in tensors) == sorted(arrays)
    for tensor in tensors:
        written = np.concatenate([piece.ravel() for piece in export_hf._numbers(tensor, leaves)])
        assert (written == arrays[tensor.name].ravel()).all(), tensor


@pytest.mark.parametrize('name', CONFIGS)
def test_a_model_is_said_by_the_family_that_it_came_from(name):
    keys = {'model_type': name, **CONFIGS[name]}
    described = config_json.decode(keys)
    said = config_json.family_of(described.model, described.head)
    assert config_json.says(described.model, described.model_type, described.head)
    assert config_json.decode(config_json.encode(described.model, said, described.head)).model == described.model


@pytest.fixture(scope='module')
def exported(finished_pipeline, tmp_path_factory):
    """stage -> (its folder, the folder of its export, in shards of 100 kB)."""
    found = {}
    for stage in ('pretrain', 'sft', 'reward', 'ppo'):
        run, = (path for path in finished_pipeline.glob(f'{stage}-*') if path.is_dir())
        to = tmp_path_factory.mktemp('exports') / stage
        found[stage] = run, export_hf.export(str(run), str(to), max_shard_gib=1e-4, say=lambda line: None)
    return found


@pytest.mark.parametrize('stage, kind', [('pretrain', 'LlamaForCausalLM'), ('sft', 'LlamaForCausalLM'),
                                         ('reward', 'LlamaForSequenceClassification'), ('ppo', 'LlamaForCausalLM')])
def test_every_stage_is_exported_and_imported_bit_equal(exported, stage, kind, tmp_path):
    run, folder = exported[stage]
    said = json.loads((folder / 'config.json').read_text())
    assert said['architectures'] == [kind]
    assert len(list(folder.glob('model-*.safetensors'))) > 1
    imported = import_hf.import_model(str(folder), str(tmp_path), say=lambda line: None,
                                      progress=lambda *done: None)
    step = run_lib.read_result(export_hf.epath.Path(run)).step
    before, after = read_manifest(run / 'checkpoints', step), read_manifest(imported / 'checkpoints', 0)
    item = 'ema' if 'ema' in before.leaves else 'params'
    kept = {path.removeprefix('policy/'): leaf for path, leaf in before.leaves[item].items()
            if not path.startswith('value/')}
    assert after.leaves['params'] == kept, 'the fingerprints of all leaves'
    assert after.model == before.model and after.heads == before.heads
    assert after.reward == (None if before.reward is None else pytest.approx(before.reward))
    assert after.data['imported']['files'] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
        if path.name != 'generation_config.json'}, 'all that was read'


def test_the_same_files_are_imported_once(exported, tmp_path):
    lines = []
    for _ in range(2):
        import_hf.import_model(str(exported['sft'][1]), str(tmp_path), say=lines.append, progress=lambda *done: None)
    assert 'imported before' in lines[-1] and len(list(tmp_path.glob('imported-*'))) == 1


def test_an_import_says_that_its_chat_template_is_not_known(exported, tmp_path):
    lines, folder = [], shutil.copytree(exported['sft'][1], tmp_path / 'model')
    (folder / 'chat_template.jinja').write_text('{{ messages }}')
    for name in (None, 'quartet-1'):
        import_hf.import_model(str(folder), str(tmp_path), chat_template=name, say=lines.append,
                               progress=lambda *done: None)
    said, = (line for line in lines if 'chat template' in line)
    assert said.startswith('import  chat template unknown-') and said.endswith('import with --chat_template=NAME')


def test_an_import_that_was_killed_after_its_seal_ends(exported, tmp_path):
    for _ in range(2):
        folder = import_hf.import_model(str(exported['sft'][1]), str(tmp_path), say=lambda line: None,
                                        progress=lambda *done: None)
        assert run_lib.read_result(folder).why == 'imported'
        (folder / 'result.json').unlink()


def test_every_stage_starts_from_an_import(exported, finished_pipeline, tmp_path):
    policy, scorer = (str(import_hf.import_model(str(exported[stage][1]), str(tmp_path), say=lambda line: None,
                                                 progress=lambda *done: None)) for stage in ('sft', 'reward'))
    starts = {'pretrain.init_from': policy, 'sft.init_from': policy, 'reward.init_from': policy,
              'ppo.init_from': policy, 'ppo.reward_from': scorer, 'pretrain.stop_step': 1, 'sft.stop_step': 1,
              'reward.stop_step': 1}
    results = tiny.run(tiny.pipeline_config(finished_pipeline, **starts), tmp_path)
    assert set(results) == {'pretrain', 'sft', 'reward', 'ppo'}


def test_a_folder_that_is_not_empty_is_not_written_over(exported, tmp_path):
    (tmp_path / 'mine').write_text('')
    with pytest.raises(UserError, match='not empty'):
        export_hf.export(str(exported['sft'][0]), str(tmp_path), say=lambda line: None)
    (tmp_path / 'new.partial').mkdir()
    with pytest.raises(UserError, match='new.partial is left over'):
        export_hf.export(str(exported['sft'][0]), str(tmp_path / 'new'), say=lambda line: None)


@pytest.mark.parametrize('size', [0.0, -1.0, float('inf'), float('nan')])
def test_a_shard_of_no_size_is_refused(exported, tmp_path, size):
    with pytest.raises(UserError, match='not a positive number'):
        export_hf.export(str(exported['sft'][0]), str(tmp_path / 'new'), max_shard_gib=size, say=lambda line: None)


def test_another_tokenizer_than_the_steps_is_not_exported(exported, tmp_path):
    run = shutil.copytree(exported['sft'][0], tmp_path / 'sft')
    tokenizers.train([' '.join(tiny.WORDS)] * 50, 320, 10**6, str(run / 'tokenizer.model'))
    with pytest.raises(UserError, match='restore the tokenizer of that run'):
        export_hf.export(str(run), str(tmp_path / 'new'), say=lambda line: None)


@pytest.mark.parametrize('text', ['1,8', '1,--8,1', '1,x,1', ''])
def test_a_mesh_that_is_not_three_numbers_is_refused(text):
    with pytest.raises(UserError, match='is not three numbers'):
        import_hf._mesh(text)


def test_numbers_that_are_none_are_refused(tmp_path, exported):
    folder = tmp_path / 'model'
    folder.mkdir()
    for path in exported['sft'][1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shard = next(folder.glob('model-00001-*'))
    content = bytearray(shard.read_bytes())
    content[-4:] = np.float32('nan').tobytes()
    shard.write_bytes(content)
    with pytest.raises(UserError, match='not finite'):
        import_hf.import_model(str(folder), str(tmp_path / 'runs'), say=lambda line: None, progress=lambda *done: None)
