"""The optimizer: AdamW or Muon with clipping, a learning-rate schedule, and decay on matrices only.

In: an `OptimConfig`.
Out: optax schedules and gradient transformations.
Left out: when they are applied (`llm/train_step.py`); averaging of weights, which is no part of the update.
"""

import jax
import optax
import optax.contrib

from llm.config import OptimConfig
from llm.errors import UserError

_NOT_DECAYED = ('bias', 'scale')
_RMS = 0.2  # of a Muon update's elements, about what AdamW's have (arXiv:2502.16982): one learning rate fits both


def schedule(config: OptimConfig, *, frozen_steps: int = 0) -> optax.Schedule:
    """Learning rate as a function of the number of updates done before.

    Linear warm-up over `warmup_steps` (its first update is already at learning_rate / warmup_steps: one at 0
    would be lost), then
      constant: learning_rate for ever;
      cosine: half a cosine from learning_rate to final_fraction of it at `schedule_steps`, constant after;
      wsd: constant until the last decay_fraction of `schedule_steps`, then linear to final_fraction of it
        (warm-up, stable, decay: arXiv:2404.06395; the linear decay: arXiv:2405.18392).
    `frozen_steps` puts that many updates of learning rate 0 before all of it.
    Raises UserError where warm-up and decay do not fit into `schedule_steps`.
    """
    rate, warmup, constant = config.learning_rate, config.warmup_steps, config.schedule == 'constant'
    decay = max(round(config.decay_fraction * config.schedule_steps), 1) if config.schedule == 'wsd' else 1
    stable = config.schedule_steps - warmup - decay
    if stable < 0 and not constant:
        raise UserError(f'optim.schedule_steps={config.schedule_steps} is less than '
                        f'optim.warmup_steps={warmup} plus {decay} of decay; use more steps')
    if constant:
        after = optax.constant_schedule(rate)
    elif config.schedule == 'cosine':
        after = optax.cosine_decay_schedule(rate, stable + decay, config.final_fraction)
    else:
        falling = optax.linear_schedule(rate, rate * config.final_fraction, decay)
        after = optax.join_schedules([optax.constant_schedule(rate), falling], [stable])
    warm_up = optax.linear_schedule(rate / max(warmup, 1), rate, max(warmup, 1))
    return optax.join_schedules([optax.constant_schedule(0.0), warm_up, after],
                                [frozen_steps, frozen_steps + warmup])


def decay_mask(params):
    """True for matrices and embedding tables (positions too, as in nanoGPT), False for norms and biases.

    By name, not by rank: layers are stacked, so there a norm's scale has two axes, an attention bias three.
    """
    def decayed(path, _):
        return path[-1].key not in _NOT_DECAYED
    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: OptimConfig, *, frozen_steps: int = 0) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW or Muon; decay is multiplied by the learning rate, as optax does.

    Muon (Jordan et al., 2024): of each matrix of a hidden layer the momentum (0.95, Nesterov) is made orthogonal by
    five Newton-Schulz steps and scaled to AdamW's size; embeddings, heads, norms and biases get AdamW with Nesterov
    momentum.
    """
    if config.clip_norm <= 0:
        raise UserError(f'optim.clip_norm={config.clip_norm} stops all learning; use a positive norm, '
                        f'inf for none')
    rate = schedule(config, frozen_steps=frozen_steps)
    if config.name == 'adamw':
        rule = optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay,
                           mask=decay_mask)
    else:
        # Decay is added here: optax's own Muon would decay norms and biases too. At rate 1 it gives -update.
        direction = optax.contrib.muon(1.0, beta=0.95, eps=config.eps, adam_b1=config.b1, adam_b2=config.b2,
                                       consistent_rms=_RMS, muon_weight_dimension_numbers=hidden_matrices)
        rule = optax.chain(direction, optax.add_decayed_weights(-config.weight_decay, decay_mask),
                           optax.scale_by_schedule(rate))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def hidden_matrices(params):
    """Which axes of a weight are its matrix's rows and columns, for Muon; None: no matrix of a hidden layer.

    Layers are stacked [L, in, out...], so axis 0 numbers matrices; only attention's `out` is [L, in, in, out].
    """
    def axes(path, weight):
        names = [key.key for key in path]
        if 'layers' not in names or names[-1] in _NOT_DECAYED:
            return None
        first_out = 3 if names[-2] == 'out' else 2
        return optax.contrib.MuonDimensionNumbers(tuple(range(1, first_out)), tuple(range(first_out, weight.ndim)))
    return jax.tree_util.tree_map_with_path(axes, params)


def by_top_key(transforms: dict[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Each top-level key of the parameters ('policy', 'value') under an optimizer and clipping of its own."""
    return optax.multi_transform(transforms, {key: key for key in transforms})
