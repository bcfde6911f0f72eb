"""Pretraining on the Bible, Shakespeare and reviews: a 2.6 M parameter Llama-like model, 4,096 pieces.

Source: recipe of this repository. Command: python -m llm.main --config=configs/pretrain.py --workdir=runs/x
Hardware: two CPU cores, 6 minutes; `:long` takes three times as long, `:tiny` seconds.
Expected: bits per byte in experiments/.

`:8b` and `:70b` are Llama 3.1's shapes on TPU pods: compiled ahead of time (experiments/plan_pods), never run.
They want `data` and `tokenizer.path` of your own: what stands there now is far too small.
Command: python -m tools.plan --config=configs/pretrain.py:8b --pod=v5p-128
Hardware: `:8b` v5p-128 (64 chips, 4 rows of 4,096 tokens each), `:70b` v5p-1024 (512 chips, 1 row each).
"""

from ml_collections import ConfigDict

from configs import base
from configs import sizes


def get_config(variant: str = '') -> ConfigDict:
    base.check_variant(variant, ('', 'tiny', 'long', '8b', '70b'))
    config = base.pretrain(sizes.mini())
    config.data = base.data(bible=base.source(tfds='bible'), shakespeare=base.source(tfds='shakespeare'),
                            reviews=base.source(tfds='reviews/text'))
    config.stop_step = config.optim.schedule_steps = 500
    config.optim.name = 'muon'  # it learns in fewer steps: experiments/learn_recipes
    config.optim.learning_rate = 5e-3
    config.eval_every_steps = config.save_every_steps = 250
    config.optim.warmup_steps = 50
    config.samples.prompts = ('In the beginning', 'ROMEO. ')
    if variant == 'long':
        config.stop_step = config.optim.schedule_steps = 1500  # about as many rows as there are
        config.eval_every_steps = config.save_every_steps = 500
    if variant in ('8b', '70b'):
        config.model = sizes.llama3_1_8b() if variant == '8b' else sizes.llama3_1_70b()
        base.on_pod(config)
        config.batch_size, config.seq_len = (256 if variant == '8b' else 512), 4096
        config.stop_step = config.optim.schedule_steps = 150_000  # 157 and 315 billion tokens
        config.eval_every_steps = config.save_every_steps = 1000
        config.eval_rows = config.batch_size
        config.optim.name, config.optim.learning_rate, config.optim.warmup_steps = 'adamw', 3e-4, 2000
    if variant == '8b':
        # Weights are split over both axes: gathered over two rings, less is held and sent (experiments/plan_pods).
        config.exec.mesh.data, config.exec.rules.embed = 4, ('fsdp', 'data', 'context')
    if variant == 'tiny':
        config.model = sizes.tiny()
        base.shrink(config)
    return config
