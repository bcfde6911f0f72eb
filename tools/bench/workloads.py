"""The table of workloads: what each is, with which shapes, and who does the same beside us.

In: nothing. Out: `WORKLOADS` by name; `job`, the plain values that both sides' workers are given.
Left out: how any of it is done (`ours/`, `peers/`).

A job has: stage; model (the keys of `ModelConfig`); config, the keys of the stage that differ from its defaults, by
their names in `configs/base.py`; optim, all keys of the optimizer; seed; and what a workload adds.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs import sizes
from configs.families.llama import llama


@dataclasses.dataclass(frozen=True)
class Peer:
    """A program of somebody else's: a module of `peers/`, the environment that it runs in ('' is ours), its mode."""

    name: str
    module: str
    environment: str = 'torch'
    adds: dict[str, Any] = dataclasses.field(default_factory=dict)  # to the job


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row: what it is, our module, the job, the job's smallest form, the peers."""

    about: str
    module: str  # of ours/
    stage: str
    model: ConfigDict
    config: dict[str, Any]
    smoke: dict[str, Any]  # of `config` and `adds`, what is smaller where seconds must do
    adds: dict[str, Any] = dataclasses.field(default_factory=dict)
    peers: tuple[Peer, ...] = ()


def gpt2_like(**sizes) -> ConfigDict:
    """Learned positions, LayerNorm, GELU, biases, tied embeddings."""
    parts = dict(num_kv_heads=sizes['num_heads'], head_dim=sizes['model_dim'] // sizes['num_heads'],
                 mlp_dim=4 * sizes['model_dim'], positions='learned', norm='layernorm', norm_eps=1e-5, mlp='gelu',
                 use_bias=True, tie_embeddings=True)
    return base.model(**(parts | sizes))


# Model S, 17.3 million parameters, its twin of 14.0, and nanoGPT's model for CPUs (with the biases that GPT-2 has).
SIZES = {
    'S': llama(vocab_size=8192, model_dim=384, num_layers=6, num_heads=6, num_kv_heads=6, mlp_dim=1536,
               max_positions=512, tie_embeddings=True),
    'S-gpt2': gpt2_like(vocab_size=8192, model_dim=384, num_layers=6, num_heads=6, mlp_dim=1536, max_positions=512),
    'nano': gpt2_like(vocab_size=65, model_dim=128, num_layers=4, num_heads=4, max_positions=64),
}
_SMOKE_MODEL = {'model_dim': 32, 'num_layers': 2, 'num_heads': 2, 'num_kv_heads': 2, 'head_dim': 16, 'mlp_dim': 64,
                'vocab_size': 384}
_PPO = {'optim.schedule': 'constant', 'optim.learning_rate': 1e-6, 'value_learning_rate': 1e-6}
_SMOKE_ROLLOUT = {'rollout_batch': 4, 'batch_size': 2, 'max_prompt_tokens': 8, 'max_new_tokens': 8, 'seq_len': 16}
_EAGER = Peer('transformers', 'transformers_pretrain')
_COMPILED = Peer('transformers, torch.compile', 'transformers_pretrain', adds={'compile': True})

NOT_COMPILED = ('data', 'first_step')  # modules whose own process compiles nothing

WORKLOADS = {
    'pretrain-gpt2': Workload(
        'pretraining step, 8 x 256, GPT-2-like', 'training', 'pretrain', SIZES['S-gpt2'],
        {'batch_size': 8, 'seq_len': 256}, {'batch_size': 2, 'seq_len': 16}, {'updates': 3},
        peers=(_EAGER, _COMPILED)),
    'pretrain-llama': Workload(
        'pretraining step, 8 x 256, Llama-like', 'training', 'pretrain', SIZES['S'],
        {'batch_size': 8, 'seq_len': 256}, {'batch_size': 2, 'seq_len': 16}, {'updates': 3},
        peers=(_EAGER, _COMPILED, Peer('Tunix', 'tunix_pretrain', 'tunix'))),
    'nanogpt': Workload(
        "pretraining step of nanoGPT's model for CPUs, 12 x 64", 'training', 'pretrain', SIZES['nano'],
        {'batch_size': 12, 'seq_len': 64}, {'batch_size': 2, 'seq_len': 16}, {'updates': 60},
        peers=(Peer('nanoGPT, torch', 'nanogpt'), _EAGER, _COMPILED)),
    'sft': Workload(
        'SFT of texts of 16 to 256 tokens, mean 100, packed without contamination', 'training', 'sft', SIZES['S'],
        {'batch_size': 8, 'seq_len': 256}, {'batch_size': 2, 'seq_len': 32, 'lengths': [4, 32, 12]},
        {'updates': 3, 'lengths': [16, 256, 100]},
        peers=(Peer('TRL, packed', 'trl_sft', adds={'packing': True}), Peer('TRL, padded', 'trl_sft'))),
    'generate': Workload(
        'generation, 16 prompts of 64 tokens, 128 new tokens each', 'sampling', 'ppo', SIZES['S'],
        {'rollout_batch': 16, 'batch_size': 16, 'max_prompt_tokens': 64, 'max_new_tokens': 128, 'seq_len': 192},
        _SMOKE_ROLLOUT, peers=(Peer('transformers', 'transformers_generate'),
                               Peer('Tunix', 'tunix_generate', 'tunix'))),
    'generate-mixed': Workload(
        'generation, 64 prompts of 64 tokens, 8 to 128 new tokens', 'sampling', 'ppo', SIZES['S'],
        {'rollout_batch': 64, 'batch_size': 16, 'max_prompt_tokens': 64, 'max_new_tokens': 128, 'seq_len': 192},
        _SMOKE_ROLLOUT | {'limits': [2, 8, 5]}, {'limits': [8, 128, 68]},
        peers=(Peer('transformers, static', 'transformers_generate'),
               Peer('transformers, continuous', 'transformers_generate', adds={'continuous': True}),
               Peer('Tunix', 'tunix_generate', 'tunix'))),
    'reward': Workload(
        'reward model, 16 pairs x 64', 'training', 'reward', SIZES['S'],
        {'batch_size': 16, 'seq_len': 64, 'ranked_answers': 2}, {'batch_size': 2, 'seq_len': 16}, {'updates': 3},
        peers=(Peer('TRL', 'trl_reward'),)),
    'reward-mixed': Workload(
        'reward model, 16 pairs of answers of 8 to 64 tokens, mean 32', 'training', 'reward', SIZES['S'],
        {'batch_size': 16, 'seq_len': 64, 'ranked_answers': 2},
        {'batch_size': 2, 'seq_len': 16, 'lengths': [4, 16, 8]}, {'updates': 3, 'lengths': [8, 64, 32]},
        peers=(Peer('TRL', 'trl_reward'),)),
    'ppo': Workload(
        'PPO iteration: 64 prompts of 32, 32 new, 4 epochs x 4 minibatches', 'ppo', 'ppo', SIZES['S'],
        {'rollout_batch': 64, 'batch_size': 16, 'max_prompt_tokens': 32, 'max_new_tokens': 32, 'seq_len': 64,
         'epochs': 4, **_PPO}, _SMOKE_ROLLOUT,
        peers=(Peer('TRL', 'trl_ppo', 'trl-ppo'), Peer('Tunix', 'tunix_ppo', 'tunix'))),
    'ppo-mixed': Workload(
        'the same with answers that end, after 14 tokens in the mean (TRL reads and trains on padding)', 'ppo', 'ppo',
        SIZES['S'], {'rollout_batch': 64, 'batch_size': 16, 'max_prompt_tokens': 32, 'max_new_tokens': 32,
                     'seq_len': 64, 'epochs': 4, **_PPO}, _SMOKE_ROLLOUT, {'ends': 1 / 16},
        peers=(Peer('TRL', 'trl_ppo', 'trl-ppo'),)),
    'first-step': Workload(
        'first SFT step from process start, compiled before', 'first_step', 'sft', SIZES['S'],
        {'batch_size': 8, 'seq_len': 256, 'eval_rows': 8}, {'batch_size': 2},
        peers=(Peer('TRL', 'trl_first_step'),)),
    'first-step-cold': Workload(
        'first SFT step from process start, with an empty compilation cache', 'first_step', 'sft', SIZES['S'],
        {'batch_size': 8, 'seq_len': 256, 'eval_rows': 8}, {'batch_size': 2}, {'cold': True},
        peers=(Peer('TRL', 'trl_first_step'),)),
    'checkpoint': Workload(
        'checkpoint of 135 M float32 parameters', 'checkpoint', 'pretrain', sizes.smollm2_135m(), {},
        {'parameters': 100_000}, {'parameters': 134_515_008}, peers=(Peer('numpy, fsync', 'numpy_files', ''),)),
    'data': Workload(
        'tokenising, preparing and reading rows of 256 tokens', 'data', 'pretrain', SIZES['S'], {'seq_len': 256},
        {'seq_len': 32, 'text_bytes': 100_000}, {'text_bytes': 4_000_000}),
}


def job(workload: Workload, smoke: bool) -> dict[str, Any]:
    """Plain values, the same for both sides; with `smoke` of the smallest shapes, an update a turn."""
    model, config = workload.model.to_dict(), dict(workload.config)
    adds = dict(workload.adds)
    if smoke:
        model |= _SMOKE_MODEL
        config |= {key: value for key, value in workload.smoke.items() if key in config}
        adds |= {key: value for key, value in workload.smoke.items() if key not in config} | {'updates': 1}
    return {'stage': workload.stage, 'model': model, 'config': config, 'optim': base.optim().to_dict(), 'seed': 0,
            **adds}
