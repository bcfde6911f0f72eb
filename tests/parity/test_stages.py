"""An imported SmolLM2 goes through sft, reward and ppo on eight devices, by config alone, with its own tokenizer."""

import math

import pytest

from llm.data.tokenizer import FOREIGN
from llm.interop import import_hf
from llm.manifest import read as read_manifest
from tests import tiny
from tests.parity import references

pytestmark = references.needed
# A prompt in its chat format has about 30 tokens before a word is said.
ROOM = {'seq_len': 72, 'max_prompt_tokens': 64, 'max_new_tokens': 8}


@pytest.mark.slow
def test_smollm2_goes_through_the_later_stages(tmp_path):
    gguf, = (references.FOLDER / 'real' / 'smollm2').glob('*.gguf')
    imported = import_hf.import_model(str(gguf), str(tmp_path), say=lambda line: None,
                                      progress=lambda what, done, total: None)
    tiny.write_data(tmp_path)
    config = tiny.pipeline_config(tmp_path, mesh=(1, 8, 1))  # three heads of keys: nothing for an axis `tensor`
    del config.stages['pretrain']
    config.stages.sft.init_from = str(imported)
    for name, stage in config.stages.items():
        stage.update({key: value for key, value in ROOM.items() if key in stage})
        stage.update(stop_step=1 if name == 'ppo' else 2, eval_every_steps=2, save_every_steps=2, eval_rows=8)
        stage.samples.prompts = ()
        stage.figures.rows = 0
    config.stages.ppo.update(rollout_batch=8, value_warmup_steps=0)
    wanted, results = read_manifest(imported / 'checkpoints', 0), tiny.run(config, tmp_path)
    assert set(results) == {'sft', 'reward', 'ppo'}
    # Generated words say little to it, and still it is better than by chance.
    assert results['sft'].after < results['sft'].before < math.log(wanted.model['vocab_size'])
    assert all(math.isfinite(result.after) for result in results.values())
    for name, result in results.items():
        folder, = (path for path in tmp_path.glob(f'{name}-*') if path.is_dir())
        manifest = read_manifest(folder / 'checkpoints', result.step)
        assert manifest.tokenizer == wanted.tokenizer and manifest.model == wanted.model
        assert sorted(path.name for path in (folder / FOREIGN).iterdir()) == sorted(
            path.name for path in (imported / FOREIGN).iterdir())
