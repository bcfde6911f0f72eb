"""Do the parents of a sweep's rows run once? Three rates of SFT, two of the scorer, four of PPO's KL targets.

Command: python -m tools.sweep experiments/launch_sweep/sweep.py --workdir=runs/sweep --jobs=2
Expected: 24 rows of 1 pretrain, 3 sft, 6 reward and 24 ppo runs.
"""

from tools.sweeps.grid import product

CONFIG = 'configs/quickstart.py:tiny'
SWEEP = product({'stages.sft.optim.learning_rate': [1e-3, 3e-3, 1e-2]},
                {'stages.reward.optim.learning_rate': [1e-3, 3e-3]},
                {'stages.ppo.kl_target': [1.0, 2.0, 4.0, 8.0]})
