"""A stage that got SIGKILL between two saves goes on as if nothing had been, bit for bit.

One pipeline runs to its end. A second one is killed once in every stage and started again each time. A copy
of what each kill left behind goes on on another mesh: the same losses but for rounding.
"""

import json
import shutil

import pytest

from tests import tiny
from tests.stages import exactness

# PPO counts iterations; its KL coefficient moves fast, it reads chats beside its prompts, and has a window of gold
# scores; an average of the weights has to survive as well.
STEPS = {'pretrain': 24, 'sft': 24, 'reward': 24, 'ppo': 12}
SAVES = 3
CHANGES = {'ppo.kl_horizon': 100.0, 'ppo.ptx_coef': 0.5, 'ppo.value_from': 'sft', 'sft.optim.ema_decay': 0.9,
           'reward.dropout': 0.0}  # on a mesh of many shards its answers stand in other rows, and it draws otherwise
LOSSES = {'pretrain': ('loss', 'bits_per_byte'), 'sft': ('loss', 'next_token'), 'reward': ('loss', 'k_wise'),
          'ppo': ('loss', 'value', 'entropy', 'kl_coef', 'ptx')}
OTHER = {'pretrain': (2, 2, 2), 'sft': (8, 1, 1), 'reward': (2, 2, 2), 'ppo': (2, 2, 2)}


def config_of(folder):
    changes = dict(CHANGES)
    for name, steps in STEPS.items():
        changes |= {f'{name}.stop_step': steps, f'{name}.eval_every_steps': steps // SAVES,
                    f'{name}.save_every_steps': steps // SAVES}
    return tiny.pipeline_config(folder, **changes)


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
    """Three ways to the end, and the last step written before each kill: whole, killed, and killed[stage]."""
    folder = tmp_path_factory.mktemp('resume')
    tiny.write_data(folder)
    config, whole, killed = config_of(folder), folder / 'whole', folder / 'killed'
    tiny.run(config, whole)
    for name in exactness.NAMES:
        exactness.drive(config, killed, kill_in=name, beyond=STEPS[name] // SAVES)
        shutil.copytree(killed, folder / name)
    exactness.drive(config, killed)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('name', exactness.NAMES)
def test_the_kill_came_between_saves(name, workdirs):
    folder = exactness.folder_of(name, workdirs / name)
    saved, written = exactness.last_manifest(folder).step, exactness.rows(folder)[-1]['step']
    assert 0 < saved < written < STEPS[name] and not (folder / 'result.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', exactness.NAMES)
def test_started_again_it_ends_in_the_same_bits(name, workdirs):
    whole, killed = (exactness.folder_of(name, workdirs / way) for way in ('whole', 'killed'))
    assert exactness.rows(killed) == exactness.rows(whole)
    for kept in ('samples.jsonl', 'figures.json', 'tokenizer.model'):
        assert (killed / kept).read_bytes() == (whole / kept).read_bytes()
    ends = [exactness.last_manifest(folder) for folder in (whole, killed)]
    assert ends[0].leaves == ends[1].leaves
    assert (ends[0].step, ends[0].files, ends[0].reward) == (ends[1].step, ends[1].files, ends[1].reward)
    results = [json.loads((folder / 'result.json').read_text()) for folder in (whole, killed)]
    for key in results[0].keys() - {'seconds', 'phases', 'code'}:  # the source may be edited while this runs
        assert results[0][key] == results[1][key], key


@pytest.mark.slow
@pytest.mark.parametrize('name', exactness.NAMES)
def test_started_again_on_another_mesh_it_says_the_same(name, workdirs):
    config = exactness.up_to(name, config_of(workdirs))
    exactness.execute_on(config.stages[name], OTHER[name])
    tiny.run(config, workdirs / name)
    whole, moved = (exactness.folder_of(name, workdirs / way) for way in ('whole', name))
    assert exactness.last_manifest(moved).mesh == config.stages[name].exec.mesh.to_dict()
    got, expected = exactness.rows(moved), exactness.rows(whole)
    for key in LOSSES[name]:
        assert exactness.difference(got, expected, key) <= 1e-5, key
    for mine, theirs in zip(got, expected):  # rewards are of size 1, and their mean may come near 0
        assert mine.get('reward', 0.0) == pytest.approx(theirs.get('reward', 0.0), rel=0, abs=1e-5)
    normalizers = [exactness.last_manifest(folder).reward or {} for folder in (moved, whole)]
    assert normalizers[0] == pytest.approx(normalizers[1], rel=1e-5)
