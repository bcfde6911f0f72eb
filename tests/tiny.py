"""The one tiny config that tests share: its model, how it is run on the mesh under test, and four stages of it."""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import random

from ml_collections import ConfigDict

from configs import base
from configs import quickstart
from configs import sizes
from llm.config import ExecConfig, MeshConfig, ModelConfig
from llm.door import from_dict
from llm.pipeline import run_pipeline
from llm.run import Result

MODEL = from_dict(ModelConfig, sizes.tiny().to_dict())
EXEC = from_dict(ExecConfig, base.execution().to_dict())
MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2))  # data, fsdp, tensor

WORDS = ('the a of to and in is was film plot king queen love death night day good bad great dull bright '
         'actor story scene music begins ends never always with without laughter tears').split()


def model(**changes) -> ModelConfig:
    return dataclasses.replace(MODEL, **changes)


def execution(mesh: tuple[int, int, int] = (1, 1, 1), **changes) -> ExecConfig:
    return dataclasses.replace(EXEC, mesh=MeshConfig(*mesh), **changes)


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
        stages[name].exec.mesh = dict(zip(('data', 'fsdp', 'tensor'), mesh))
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
