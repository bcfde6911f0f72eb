"""Pretraining steps with Tunix: its own loop and trainer, of all weights, on its own Llama.

In: a job of stage pretrain. Out: tokens a second.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from tools.bench.peers.tunix_models import adamw, language_model, PACKAGES
from tools.bench.serve import serve, timed, Work


def make(job: dict[str, Any]) -> Work:
    """`job['updates']` updates a turn, on new random tokens each.

    Tunix's loss takes its targets from the row, so that a row of n tokens has n - 1 of them; all n count.
    """
    shape, vocab = (job['config']['batch_size'], job['config']['seq_len']), job['model']['vocab_size']
    model, draw = language_model(job['model'], job['seed']), np.random.default_rng(job['seed'])
    trainer = PeftTrainer(model, adamw(job['optim'], job['optim']['learning_rate']),
                          TrainingConfig(eval_every_n_steps=1)).with_gen_model_input_fn(model_input)
    trainer.is_managed_externally = True  # trained on more than one data set, and not closed after the first

    def updates() -> float:
        trainer.train([TrainingInput(draw.integers(0, vocab, shape, np.int32), np.ones(shape, bool))
                       for _ in range(job['updates'])])
        jax.block_until_ready(nnx.state(model))
        return job['updates'] * shape[0] * shape[1]
    return Work(timed('tokens', updates))


def model_input(rows: TrainingInput) -> dict[str, jax.Array]:
    """As Tunix's guides have it, but that no token is padding."""
    mask = jnp.asarray(rows.input_mask)
    return {'input_tokens': rows.input_tokens, 'input_mask': mask, 'positions': build_positions_from_mask(mask),
            'attention_mask': make_causal_attn_mask(mask)}


if __name__ == '__main__':
    serve(make, PACKAGES)
