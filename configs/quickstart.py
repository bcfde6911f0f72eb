"""The whole chain on real text, small: pretrain -> sft -> reward -> ppo.

Source: World English Bible, Shakespeare, film and product reviews with human ratings, question-answer exchanges.
Command: bash tools/quickstart.sh, or python -m llm.main --config=configs/quickstart.py --workdir=runs/quickstart
Hardware: two CPU cores, 4 GiB. Variant `:tiny` runs all four stages in about a minute;
`:long` reads three times as much, and has twice the SFT.
Expected: every stage better than its parent on its own held-out number; experiments/ has the measured ones.
"""

from ml_collections import ConfigDict

from configs import base
from configs import ppo
from configs import pretrain
from configs import reward
from configs import sft


def get_config(variant: str = '') -> ConfigDict:
    """A pipeline: its stages by name, each the recipe of the same name."""
    base.check_variant(variant, ('', 'tiny', 'long'))
    later = '' if variant == 'long' else variant
    stages = {'pretrain': pretrain.get_config(variant), 'sft': sft.get_config(variant),
              'reward': reward.get_config(later), 'ppo': ppo.get_config(later)}
    stages['sft'].init_from = 'stage:pretrain'
    stages['reward'].init_from = 'stage:sft'
    stages['ppo'].init_from = 'stage:sft'
    stages['ppo'].reward_from = 'stage:reward'
    return ConfigDict({'stages': stages})
