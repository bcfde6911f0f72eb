"""The job that faults are done to: four stages of a very small model on generated words, and what two runs of it share.

In: a folder. Out: a config and its data there; the command that runs it; all that must be equal, bit for bit, however
often a run was interrupted.
Left out: the faults (the other files here).
"""

from collections.abc import Callable
import json
import os
import pathlib
import random
import sys
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs import quickstart
from llm.manifest import Manifest, read, sealed_steps
from llm.pipeline import run_pipeline
from llm.run import Result

NAMES = ('pretrain', 'sft', 'reward', 'ppo')
ROOT = pathlib.Path(__file__).parents[2]

WORDS = ('the a of to and in is was film plot king queen love death night day good bad great dull bright '
         'actor story scene music begins ends never always with without laughter tears').split()


def write_data(folder: pathlib.Path) -> None:
    """Writes JSON lines of text, chats, ranked, prompts, rated and choices: generated words, always the same."""
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return ' '.join(draw.choices(WORDS, k=draw.randint(least, most)))

    def said(role: str, least: int, most: int) -> dict[str, str]:
        return {'role': role, 'content': words(least, most)}
    rows = {
        'text': [{'text': words(20, 80) + '.\n'} for _ in range(120)],
        'chats': [{'messages': [said('user', 2, 5), said('assistant', 1, 4)]} for _ in range(120)],
        'ranked': [{'prompt': words(2, 4), 'answers': [words(1, 4) for _ in range(3)],
                    'scores': [draw.uniform(-4, 4) for _ in range(3)]} for _ in range(80)],
        'prompts': [{'messages': [said('user', 2, 4), said('assistant', 1, 2)]} for _ in range(80)],
        'rated': [{'text': words(3, 8), 'mean': draw.uniform(-4, 4)} for _ in range(60)],
        'choices': [{'messages': [said('user', 3, 5), {'role': 'assistant', 'content': draw.choice(('good', 'bad'))}]}
                    for _ in range(60)]}
    for name, records in rows.items():
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in records))


def pipeline_config(folder: pathlib.Path, *, mesh: tuple[int, int, int] = (1, 1, 1), **overrides) -> ConfigDict:
    """The quickstart's four stages on the data of `write_data(folder)`, a few steps of a very small model each.

    Args:
      mesh: of every stage.
      overrides: by stage and dotted key, e.g. **{'sft.optim.learning_rate': 1e-2}.
    """
    def source(name: str, **keys) -> dict[str, ConfigDict]:
        return {name: base.source(jsonl=str(folder / f'{name}.jsonl'), holdout_percent=20.0, **keys)}
    config = quickstart.get_config('tiny')
    stages = config.stages
    for name, data in (('pretrain', 'text'), ('sft', 'chats'), ('reward', 'ranked'), ('ppo', 'prompts')):
        stages[name].data = base.data(**source(data))
        stages[name].exec.mesh.update(dict(zip(('data', 'fsdp', 'tensor'), mesh)))
        stages[name].exec.scan_unroll = 1  # compiles faster
        stages[name].update(batch_size=8, seq_len=32, stop_step=4, eval_every_steps=2, save_every_steps=2,
                            eval_rows=12)
        stages[name].samples.update(prompts=('the king',), max_new_tokens=8)
    stages.pretrain.model.update(vocab_size=320, model_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=64,
                                 max_positions=64)
    stages.sft.choices = base.data(**source('choices'))
    stages.reward.prompt_data = base.data(**source('prompts'))
    stages.reward.update(ranked_answers=3, normalize_samples=8, max_prompt_tokens=24, max_new_tokens=8)
    stages.ppo.update(rollout_batch=16, max_prompt_tokens=24, max_new_tokens=8, value_warmup_steps=1)
    stages.ppo.samples.prompts = ()
    stages.ppo.gold_data = base.data(**source('rated', fields={'score': 'mean'}))
    stages.ppo.ptx_data = base.data(**source('chats'))
    config.update_from_flattened_dict({f'stages.{key}': value for key, value in overrides.items()})
    return config


def run(config: ConfigDict, workdir: pathlib.Path, *, rerun: str | None = None,
        say: Callable[[str], None] = lambda line: None) -> dict[str, Result]:
    """The real pipeline, silent."""
    done = run_pipeline(config, str(workdir), rerun=rerun, say=say, progress=lambda what, done, total: None)
    return {name: result for name, (_, result) in done.items()}


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Puts a config where `command` finds it."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'config.json').write_text(config.to_json())
    (workdir / 'config.py').write_text(_CONFIG)


_CONFIG = """import json
import pathlib

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(json.loads(pathlib.Path(__file__).with_suffix('.json').read_text()))
"""


def command(workdir: pathlib.Path, *flags: str) -> list[str]:
    """To be run in `ROOT`."""
    return [sys.executable, '-m', 'llm.main', f'--config={workdir / "config.py"}', f'--workdir={workdir}', *flags]


def environment(devices: int) -> dict[str, str]:
    """Of a process that sees so many CPU devices."""
    return os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices),
                         'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


def folder_of(name: str, workdir: pathlib.Path) -> pathlib.Path:
    """The run of that stage that began last."""
    return max(workdir.glob(f'{name}-*/identity.json'), key=lambda path: path.stat().st_mtime_ns).parent


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """All that a run wrote about its steps, but for clock and speed."""
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != 'time'} for line in lines]


def last_manifest(folder: pathlib.Path) -> Manifest:
    return read(folder / 'checkpoints', sealed_steps(folder / 'checkpoints')[-1])


def first(config: ConfigDict, stages: int) -> ConfigDict:
    """The same pipeline with its first stages alone."""
    return ConfigDict({'stages': {name: config.stages[name].copy_and_resolve_references() for name in NAMES[:stages]}})


def outcome(workdir: pathlib.Path, stages: int = len(NAMES)) -> dict[str, Any]:
    """All that two runs of the job share, by stage: its rows, its steps, what it says and measures at its end."""
    found = {}
    for name in NAMES[:stages]:
        folder = folder_of(name, workdir)
        manifests = {step: read(folder / 'checkpoints', step) for step in sealed_steps(folder / 'checkpoints')}
        result = json.loads((folder / 'result.json').read_text())
        found[name] = {
            'rows': rows(folder),
            'steps': {step: (manifest.leaves, manifest.files, manifest.reward, manifest.best)
                      for step, manifest in manifests.items()},
            'texts': [(folder / kept).read_bytes() for kept in ('samples.jsonl', 'figures.json', 'tokenizer.model')],
            'result': {key: value for key, value in result.items() if key not in ('seconds', 'phases', 'code')}}
    return found


def every_step(steps: int) -> dict[str, int]:
    """Overrides by which all stages take so many steps, and save after each."""
    values = {'stop_step': steps, 'save_every_steps': 1, 'eval_every_steps': 2}
    return {f'{name}.{key}': value for name in NAMES for key, value in values.items()}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where the other outcome is not the first. It may keep a step more: a kill came before an old one was deleted."""
    different = []
    for name in one:
        mine, yours = one[name], other[name]
        different += [f'{name}: {part}' for part in ('rows', 'texts', 'result') if mine[part] != yours[part]]
        different += [f'{name}: step {step}' for step, said in mine['steps'].items()
                      if yours['steps'].get(step) != said]
    return different
