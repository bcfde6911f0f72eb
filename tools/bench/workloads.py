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
_EAGER = Peer('transformers', 'transformers_pretrain')
_COMPILED = Peer('transformers, torch.compile', 'transformers_pretrain', adds={'compile': True})

WORKLOADS = {
    'pretrain-gpt2': Workload(
        'pretraining step, 8 x 256, GPT-2-like', 'training', 'pretrain', SIZES['S-gpt2'],
        {'batch_size': 8, 'seq_len': 256}, {'batch_size': 2, 'seq_len': 16}, {'updates': 3},
        peers=(_EAGER, _COMPILED)),
    'pretrain-llama': Workload(
        'pretraining step, 8 x 256, Llama-like', 'training', 'pretrain', SIZES['S'],
        {'batch_size': 8, 'seq_len': 256}, {'batch_size': 2, 'seq_len': 16}, {'updates': 3},
        peers=(_EAGER, _COMPILED)),
    'nanogpt': Workload(
        "pretraining step of nanoGPT's model for CPUs, 12 x 64", 'training', 'pretrain', SIZES['nano'],
        {'batch_size': 12, 'seq_len': 64}, {'batch_size': 2, 'seq_len': 16}, {'updates': 60},
        peers=(_EAGER, _COMPILED)),
}


def job(workload: Workload, smoke: bool) -> dict[str, Any]:
    """Plain values, the same for both sides; with `smoke` of the smallest shapes, an update a turn."""
    model, config = workload.model.to_dict(), dict(workload.config)
    adds = dict(workload.adds)
    if smoke:
        model |= _SMOKE_MODEL
        config |= {key: value for key, value in workload.smoke.items() if key in config}
        adds |= {key: value for key, value in workload.smoke.items() if key not in config} | {'updates': 1}
    return {'stage': workload.stage, 'model': model, 'config': config, 'optim': base.optim().to_dict(), 'seed': 0, **adds}
