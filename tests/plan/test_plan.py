"""A plan from a config alone: every program of every stage, what it needs and does, and what to change."""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import ppo, pretrain, sizes
from llm.chips import CHIPS
from llm.data.order import Mixture
from llm.data.prepare import prepare_prompts, prepare_ranked, prepare_text
from llm.errors import UserError
from llm.model.transformer import train_flops_per_token
from llm.pipeline import open_step, STAGES
from llm.plan import suggest, table
from llm.plan.compile import bytes_a_device, plan_stage, ProgramPlan, StagePlan
from llm.plan.paper import paper_runs
from llm.plan.pods import pod
from llm.plan.suggest import advice, suggestion
from tests import tiny
from tests.stages import exactness
from tools.faults import job

ROOT = pathlib.Path(__file__).parents[2]


def paper(config, name: str = 'v5e-8') -> dict:
    return paper_runs(config, pod(name).devices())


def small(**keys):
    """A pretraining of the tiny model, all devices on fsdp."""
    config = pretrain.get_config('tiny')
    config.optim.name = 'adamw'
    config.exec.mesh.update(data=1, fsdp=-1)
    config.exec.scan_unroll = 1
    config.update_from_flattened_dict(keys)
    return config


@pytest.mark.parametrize('name', ['v4-8', 'v5e-8', 'v5p-8', 'v6e-8', 'tpu7x-8'])
def test_a_tiny_model_compiles_for_each_kind_of_chip(name):
    """Without recomputation and with one chunk of logits, the arithmetic is that of the convention, to the last one,
    but for the quarter of the scores that attention in blocks leaves out: rows of 128 are two blocks of queries."""
    config = small(**{'exec.compute_dtype': 'bfloat16'})
    run, = paper(config, name).values()
    plan = plan_stage(run, pod(name))
    step = plan.programs['step']
    model, tokens = run.model_config, 8 * 128
    whole = train_flops_per_token(model, 128) * tokens
    left_out = 12 * model.num_layers * model.num_heads * model.head_dim * 128 / 4
    assert plan.devices * step.work.flops == whole - left_out * tokens
    assert step.causal_flops == train_flops_per_token(model, 128, scores_share=0.5) * tokens
    assert plan.fits and 0 < step.need_gib < 1
    assert step.work.seconds <= step.work.seconds_without_overlap
    assert plan.hours * 3600 == pytest.approx(20 * plan.seconds)
    assert plan.tokens_per_second == pytest.approx(8 * 128 / plan.seconds)


def test_what_stays_in_memory_is_what_a_run_holds(finished_pipeline):
    """The shapes on paper are those of a real run, on its mesh: state, batches and frozen models."""
    rows = {'pretrain': (prepare_text, {}), 'reward': (prepare_ranked, {'answers': 3})}
    for name in exactness.NAMES:
        folder = exactness.folder_of(name, finished_pipeline)
        run, _, params = open_step(str(folder), say=lambda line: None, progress=lambda *work: None)
        made = STAGES[name].programs(run)
        first = made.programs['step' if name != 'ppo' else 'update'].args[0]
        assert described(first.params) == described(params)
        if name in rows:
            prepare, how = rows[name]
            found = run.corpora(prepare, 'train', seq_len=run.config.seq_len, **how)
            stream = Mixture.from_config(found, run.config.data, 0, run.config.batch_size)
            batch = next(run.batches(stream.rows, 0, run.config.batch_size))
            if name == 'reward':  # rows of one answer each, as where all are as long as may be
                full_BR = np.full(batch['length_BR'].shape, run.config.seq_len, np.int32)
                batch['length_BR'] = jax.device_put(full_BR, batch['length_BR'].sharding)
                with jax.set_mesh(run.mesh):
                    batch = STAGES[name].make_packed(run, run.config.exec.micro_batches)(batch)
            assert described(made.programs['step'].args[2]) == described(batch)
        if name == 'ppo':
            found = run.corpora(prepare_prompts, 'train', seq_len=run.config.max_prompt_tokens)
            stream = Mixture.from_config(found, run.config.data, 0, run.config.rollout_batch)
            batch = next(run.batches(stream.rows, 0, run.config.rollout_batch))
            prompts = described(made.programs['rollout'].args[1])
            assert {key: prompts[key] for key in described(batch)} == described(batch)


def described(tree) -> dict:
    return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.sharding)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_bytes_of_a_device_are_those_of_its_part():
    run, = paper(small()).values()
    state = STAGES['pretrain'].programs(run).programs['step'].args[0]
    whole = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    assert whole / 8 <= bytes_a_device(state.params) < whole / 7  # norms are on every device


def test_what_does_not_fit_is_said_in_one_line_with_the_cheapest_change_that_helps(monkeypatch):
    """On a chip with a tenth less than the step needs; half of the rows at a time need less than that."""
    run, = paper(small(batch_size=16)).values()
    need = plan_stage(run, pod('v5e-8')).peak_gib
    monkeypatch.setitem(CHIPS, 'v5e', dataclasses.replace(CHIPS['v5e'], hbm_gib=0.9 * need))
    plan = plan_stage(run, pod('v5e-8'))
    assert not plan.fits and plan.peak_gib == need
    how = suggestion(run, plan, pod('v5e-8'), 'config')
    line = table.does_not_fit('pretrain', plan, pod('v5e-8'), how)
    assert line.startswith(
        f'pretrain does not fit v5e-8: step needs {need:.2f} GiB and a device has {0.9 * need:.2f}; ')
    assert how.startswith('--config.exec.micro_batches=2 makes it fit: ') and '\n' not in line


def misfit(run, *names: str) -> StagePlan:
    """The plan of a stage of which these programs do not fit, the first the least."""
    programs = {name: ProgramPlan(fits=False, need_gib=20 - place, beside_gib=0, limit_gib=16, host_gib=0, calls=1,
                                  tokens=1, causal_flops=1, compile_seconds=1) for place, name in enumerate(names)}
    return StagePlan(stage=run.config.stage, devices=run.mesh.size, mesh=dict(run.mesh.shape), fits=False, peak_gib=20,
                     limit_gib=16, resident_gib={}, programs=programs, tokens=1, steps=1)


@pytest.fixture
def compiled(monkeypatch) -> Callable:
    """compiled(fits) -> the runs that `suggest` would compile, of which those fit for which `fits` holds."""
    def stand_in(fits: Callable) -> list:
        seen = []

        def plan(run, pod):
            seen.append(run)
            return dataclasses.replace(misfit(run, 'step'), fits=fits(run), peak_gib=10)
        monkeypatch.setattr(suggest, 'plan_stage', plan)
        return seen
    return stand_in


@pytest.mark.parametrize('fits, flags', [
    (lambda run: run.config.exec.micro_batches >= 4, '--config.exec.micro_batches=4'),
    (lambda run: run.config.exec.remat in ('qkv', 'full', 'offload'), '--config.exec.remat=qkv'),
    (lambda run: run.config.exec.remat == 'offload', '--config.exec.remat=offload'),
    (lambda run: run.mesh.shape['fsdp'] == 8, '--config.exec.mesh.data=1 --config.exec.mesh.fsdp=-1'),
    (lambda run: run.mesh.shape['context'] > 1,
     '--config.exec.mesh.data=1 --config.exec.mesh.fsdp=-1 --config.exec.mesh.context=2'),
    (lambda run: run.mesh.shape['tensor'] > 1,
     '--config.exec.mesh.data=1 --config.exec.mesh.fsdp=-1 --config.exec.mesh.tensor=2'),
    (lambda run: run.config.batch_size <= 32, '--config.batch_size=32'),
    (lambda run: run.config.batch_size <= 32 and run.config.exec.remat in ('full', 'offload'),
     '--config.exec.remat=full --config.batch_size=32')])
def test_whatever_kind_of_change_helps_is_found_and_made_as_small_as_helps(compiled, fits, flags):
    run, = paper(small(batch_size=64, **{'exec.mesh.data': -1, 'exec.mesh.fsdp': 1})).values()
    seen = compiled(fits)
    said = suggestion(run, misfit(run, 'step'), pod('v5e-8'), 'config')
    assert sorted(said.split(' makes it fit: ')[0].split()) == sorted(flags.split()) and said.endswith('10.00 GiB')
    assert len(seen) <= 30 and all(seen.count(run) == 1 for run in seen)


def test_the_recipe_for_a_pod_reaches_a_smaller_batch(compiled):
    run, = paper(pretrain.get_config('8b'), 'v5p-128').values()
    compiled(lambda run: run.config.batch_size <= 64)
    assert suggestion(run, misfit(run, 'step'), pod('v5p-128'), 'config').startswith('--config.batch_size=64 makes')


def test_nothing_helps_where_nothing_fits_or_the_compiler_fails(compiled):
    def fails(run):
        raise UserError('the TPU compiler failed')
    run, = paper(small()).values()
    for fits in (lambda run: False, fails):
        seen = compiled(fits)
        said = suggestion(run, misfit(run, 'step'), pod('v5e-8'), 'config')
        assert said == f'none of {len(seen)} changes makes it fit; use a larger pod'


def test_of_ppo_only_what_concerns_the_programs_that_do_not_fit_is_changed(compiled):
    runs, place = paper(ppo.get_config('8b'), 'v5p-128'), pod('v5p-128')
    seen = compiled(lambda run: run.config.rollout_batch <= 512)
    said = suggestion(runs['ppo'], misfit(runs['ppo'], 'rollout'), place, 'config.stages.ppo')
    assert said.startswith('--config.stages.ppo.rollout_batch=512 makes it fit')
    assert {run.config.exec.micro_batches for run in seen} == {1}
    for names, key in ((('rollout', 'update'), 'rollout_batch=512'), (('update', 'rollout'), 'exec.micro_batches=2')):
        assert advice(runs['ppo'], misfit(runs['ppo'], *names), place, 'config').startswith(f'try --config.{key}, or')


def test_advice_is_a_change_that_would_be_accepted():
    """512 rows on 512 chips are not cut into micro-batches, and every layer is computed again already."""
    run, = paper(pretrain.get_config('70b'), 'v5p-1024').values()
    said = advice(run, misfit(run, 'step'), pod('v5p-1024'), 'config')
    assert said == 'try --config.exec.remat=offload, or let --suggest try'
    config = pretrain.get_config('70b')
    config.exec.remat = 'offload'
    run, = paper(config, 'v5p-1024').values()
    assert advice(run, misfit(run, 'step'), pod('v5p-1024'), 'config').startswith('try --config.exec.mesh.context=2, ')


def test_the_bound_of_mfu_counts_no_more_than_the_compiled_program_does():
    """PaLM's convention would: the kernel leaves out half of the scores."""
    run, = paper(small(**{'exec.compute_dtype': 'bfloat16', 'exec.attention': 'splash'})).values()
    plan = plan_stage(run, pod('v5e-8'))
    step = plan.programs['step']
    whole = train_flops_per_token(run.model_config, 128) * 8 * 128
    assert step.causal_flops < plan.devices * step.work.flops < whole
    assert plan.mfu_bound == pytest.approx(step.causal_flops / (plan.seconds * 8 * CHIPS['v5e'].flops_per_second))


def plan_command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-m', 'tools.plan', *words], cwd=ROOT, capture_output=True, text=True,
                          env={key: value for key, value in os.environ.items() if key != 'JAX_PLATFORMS'})


def test_the_command_plans_four_stages_and_writes_json(tmp_path):
    config = tiny.pipeline_config(pathlib.Path('nowhere'))
    for stage in config.stages.values():
        stage.exec.mesh = {'data': 1, 'fsdp': 4, 'tensor': 2, 'context': 1}
    with config.stages.ppo.unlocked():
        config.stages.ppo.rollout_rules = {'embed': ()}
    job.write_config(config, tmp_path)
    done = plan_command(f'--config={tmp_path / "config.py"}', '--pod=v5e-8', f'--json={tmp_path / "plan.json"}')
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / 'plan.json').read_text())
    assert (plan['pod'], plan['chip']) == ('v5e-8', 'TPU v5 lite')
    programs = {name: list(stage['programs']) for name, stage in plan['stages'].items()}
    assert programs == {'pretrain': ['step'], 'sft': ['step'], 'reward': ['step'],
                        'ppo': ['reshard', 'rollout', 'score', 'update']}
    planned = plan['stages']['ppo']
    assert list(planned['resident_gib']) == ['policy', 'value', 'optimizer', 'reference', 'reward']
    assert list(planned['programs']['rollout']['parts']) == ['prefill', 'decode']
    assert set(planned['programs']['reshard']['work']['wire_bytes']) == {'all-gather'}
    for stage in plan['stages'].values():
        assert stage['fits'] and stage['peak_gib'] <= stage['limit_gib'] and stage['hours'] > 0
        # No less is done than the bound of MFU counts; but a rollout need not read the last token that it drew.
        assert all(program['causal_flops'] <= stage['devices'] * program['work']['flops'] for what, program in
                   stage['programs'].items() if what != 'rollout')
        # Nothing that stays is forgotten: what a program does not hold stands beside it.
        assert stage['peak_gib'] >= sum(stage['resident_gib'].values())


@pytest.mark.parametrize('words, line', [
    (['--config=configs/pretrain.py:8b'], '--pod is missing'),
    (['--config=configs/pretrain.py:8b', '--pod=v5e-7'], '--pod=v5e-7 is not known; did you mean v5e-'),
    (['--config=configs/pretrain.py:8b', '--pod=v5e-8', '--config.batch_size=12'],
     'batch_size=12 is not divisible by 8 data shards'),
    (['--config=configs/sft.py', '--pod=v5e-8'], 'sft needs a parent and init_from is empty')])
def test_a_mistake_costs_one_line_and_exit_code_2(words, line):
    done = plan_command(*words)
    assert done.returncode == 2
    assert line in done.stderr and 'Traceback' not in done.stderr


def test_the_recipes_for_pods_are_runs_of_released_models_on_paper():
    runs = paper(ppo.get_config('8b'), 'v5p-128') | {'70b': paper(pretrain.get_config('70b'), 'v5p-1024')['pretrain']}
    assert {run.model_config.model_dim for run in runs.values()} == {4096, 8192}
    assert runs['ppo'].model_config.stored().items() >= {'num_layers': 32, 'vocab_size': 128_256}.items()
    assert sizes.llama3_1_70b().num_layers == runs['70b'].model_config.num_layers == 80
