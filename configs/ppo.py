"""Reinforcement learning of review writing against the scorer, close to the SFT policy.

Source: PPO (arXiv:1707.06347) with the KL penalty and adaptive controller of arXiv:1909.08593, and the value
function started from the scorer as in arXiv:2203.02155.
Command: python -m llm.main --config=configs/ppo.py --workdir=runs/x --config.init_from=SFT --config.reward_from=REWARD
Hardware: two CPU cores, 3 minutes; `:tiny` takes seconds; `:ptx` adds a supervised term on human reviews.
Expected: answers that a gold scorer prefers, fitted on ratings that no model saw, within the KL budget, and as diverse
as the SFT model's; numbers in experiments/.

`:8b` is all four stages at Llama 3.1 8B's shape, for a v5p-128 or v5e-256: compiled ahead of time, never run. Answers
are sampled by eight chips a model, which training shares among all. It wants `data` and `tokenizer.path` of your own.
Command: python -m tools.plan --config=configs/ppo.py:8b --pod=v5p-128
"""

from ml_collections import ConfigDict

from configs import base
from configs import pretrain
from configs import reward
from configs import sft


def get_config(variant: str = '') -> ConfigDict:
    base.check_variant(variant, ('', 'tiny', 'ptx', '8b'))
    if variant == '8b':
        return ConfigDict({'stages': _four_of_8b()})
    config = base.ppo()
    config.data = base.data(begin=base.source(tfds='reviews/begin'))
    # The split that nothing else reads.
    config.gold_data = base.data(ratings=base.source(tfds='reviews/ratings', train_split='gold',
                                                     fields={'score': 'mean'}))
    config.kl_budget = 8.0  # so that on other prompts the kept step is within 10: experiments/learn_quickstart
    config.kl_horizon = 500.0  # of the 1,024 answers of a run, so that the controller can act within it
    config.max_prompt_tokens = 24  # nine beginnings of 4,789 are longer
    config.seq_len = 72
    config.epochs = 2
    config.stop_step = 16
    config.eval_every_steps = config.save_every_steps = 3  # gold_window of them are needed to see a trend
    config.missing_eos_penalty = 3.0  # at 1 it paid not to end: the scorer never saw unfinished reviews
    config.figures.rows = 256
    config.log_every_steps = 1
    config.optim.learning_rate = 1e-4
    config.optim.schedule = 'constant'
    config.optim.warmup_steps = 0
    config.optim.weight_decay = 0.0
    if variant == 'ptx':
        config.ptx_coef = 0.5
        config.ptx_data = base.data(write=base.source(tfds='reviews/write'))
    if variant == 'tiny':
        base.shrink(config)
        config.rollout_batch = 16
        config.max_new_tokens = 16
        config.seq_len = 40
        config.stop_step = 4
        config.eval_every_steps = config.save_every_steps = 2
    return config


def _four_of_8b() -> dict[str, ConfigDict]:
    stages = {'pretrain': pretrain.get_config('8b'), 'sft': sft.get_config(), 'reward': reward.get_config(),
              'ppo': get_config()}
    later = [stages[name] for name in ('sft', 'reward', 'ppo')]
    for config in later:
        base.on_pod(config)
        config.batch_size = config.eval_rows = 256
        config.dropout = 0.0
        config.optim.learning_rate, config.optim.warmup_steps = 1e-5, 20
        config.init_from = 'stage:sft'
    stages['sft'].init_from, stages['ppo'].reward_from = 'stage:pretrain', 'stage:reward'
    stages['sft'].seq_len = 2048
    stages['reward'].update(seq_len=1024, normalize_samples=1024, max_prompt_tokens=512, max_new_tokens=512)
    stages['ppo'].update(rollout_batch=1024, seq_len=1024, max_prompt_tokens=512, max_new_tokens=512)
    _sample_by_eight(stages['ppo'])
    return stages


def _sample_by_eight(config: ConfigDict) -> None:
    """Training splits weights and rows over all chips; sampling splits heads, and each eight chips have all rows."""
    config.exec.mesh.tensor = 8
    split = {name: ('tensor',) for name, axes in config.exec.rules.items() if axes == ('tensor',)}
    config.exec.rules.update(dict.fromkeys(split, ()) | {'embed': ('fsdp', 'tensor'),
                                                         'batch': ('data', 'fsdp', 'tensor')})
    with config.unlocked():
        config.rollout_rules = split | {'embed': (), 'batch': ('data', 'fsdp')}
