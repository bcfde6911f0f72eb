"""Fine-tuning to write a review, to judge a review, and to answer a question.

Source: recipe of this repository. Hardware: two CPU cores, 5 minutes; `:long` takes twice as long, `:tiny` seconds.
Command: python -m llm.main --config=configs/sft.py --workdir=runs/x --config.init_from=PATH@step
Expected: held-out loss of the answers far below the parent's; numbers in experiments/.
"""

from ml_collections import ConfigDict

from configs import base

PROMPTS = ('Write a film review.', 'Good or bad?\n\na dull and clumsy mess', 'What is the capital of France?')


def get_config(variant: str = '') -> ConfigDict:
    base.check_variant(variant, ('', 'tiny', 'long'))
    config = base.sft()
    config.data = base.data(write=base.source(tfds='reviews/write'),
                            judge=base.source(tfds='reviews/judge', weight=4.0),
                            answer=base.source(tfds='exchanges', weight=0.5))
    config.figures.rows = 1000  # all test choices
    config.choices = base.data(clear=base.source(tfds='reviews/clear'))
    config.weigh = 'chats'  # or a label's few tokens are lost among those of written reviews
    config.stop_step = config.optim.schedule_steps = 400
    config.eval_every_steps = config.save_every_steps = 200
    config.eval_rows = 128
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 20
    config.dropout = 0.1
    config.samples.prompts = PROMPTS
    if variant == 'long':
        # After more reading 400 are too few: experiments/learn_recipes.
        config.stop_step = config.optim.schedule_steps = 800
    if variant == 'tiny':
        base.shrink(config)
    return config
