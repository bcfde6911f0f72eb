"""The whole chain on real text, small: pretrain -> sft -> reward -> ppo.

Source: World English Bible, Shakespeare, film and product reviews with human ratings, question-answer exchanges.
Command: bash tools/quickstart.sh, or python -m llm.main --config=configs/quickstart.py --workdir=runs/quickstart
Hardware: two CPU cores, 4 GiB. Variant `:tiny` runs all four stages in about a minute.
Expected: every stage better than its parent on its own held-out number; experiments/ has the measured ones.
"""

from ml_collections import ConfigDict

from configs import ppo
from configs import pretrain
from configs import reward
from configs import sft


def get_config(variant: str = '') -> ConfigDict:
    """A pipeline: its stages by name, each the recipe of the same name."""
    stages = {name: recipe.get_config(variant) for name, recipe in
              (('pretrain', pretrain), ('sft', sft), ('reward', reward), ('ppo', ppo))}
    stages['sft'].init_from = 'stage:pretrain'
    stages['reward'].init_from = 'stage:sft'
    stages['ppo'].init_from = 'stage:sft'
    stages['ppo'].reward_from = 'stage:reward'
    return ConfigDict({'stages': stages})
