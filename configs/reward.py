"""A scorer from human ratings: four snippets a prompt, ranked by the mean of 14 to 29 ratings each.

Source: InstructGPT (arXiv:2203.02155), section 3.5, on the review snippets of Hutto and Gilbert (ICWSM 2014).
Command: python -m llm.main --config=configs/reward.py --workdir=runs/x --config.init_from=PATH@step
Hardware: two CPU cores, 2 minutes; `:tiny` takes seconds.
Expected: most held-out pairs ordered as people order them; numbers in experiments/.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = '') -> ConfigDict:
    base.check_variant(variant, ('', 'tiny'))
    config = base.reward()
    config.data = base.data(rank=base.source(tfds='reviews/rank'))
    config.prompt_data = base.data(begin=base.source(tfds='reviews/begin'))
    config.batch_size = 8
    config.stop_step = config.optim.schedule_steps = 120  # longer ones learn the training snippets by heart
    config.eval_every_steps = config.save_every_steps = 40
    config.seq_len = 96
    config.max_prompt_tokens = 32
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 20
    config.dropout = 0.2
    config.figures.rows = 1000  # all test answers
    if variant == 'tiny':
        base.shrink(config)
        config.normalize_samples = 16
        config.max_new_tokens = 16
    return config
