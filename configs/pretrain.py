"""Pretraining on the Bible, Shakespeare and reviews: a 2.6 M parameter Llama-like model, 4,096 pieces.

Source: recipe of this repository. Command: python -m llm.main --config=configs/pretrain.py --workdir=runs/x
Hardware: two CPU cores, 6 minutes; `:long` takes three times as long, `:tiny` seconds.
Expected: bits per byte in experiments/.
"""

from ml_collections import ConfigDict

from configs import base
from configs import sizes


def get_config(variant: str = '') -> ConfigDict:
    base.check_variant(variant, ('', 'tiny', 'long'))
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
    if variant == 'tiny':
        config.model = sizes.tiny()
        base.shrink(config)
    return config
