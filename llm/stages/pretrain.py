"""Pretraining: text -> base model. Learns to predict the next token of packed windows.

In: sources of text; a tokenizer, or text to train one on; maybe an earlier run's parameters.
Out: checkpoints with a token head, held-out loss by source, continuations of the configured prompts.
Left out: packing (`data.prepare`), the loss (`objectives.next_token`).
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm import evaluate
from llm.data.order import Mixture
from llm.data.prepare import prepare_text
from llm.figures import bits_per_byte, test_documents
from llm.journal import averaged, Journal
from llm.loop import every, fit
from llm.model.attention import MaskSpec
from llm.model.transformer import train_flops_per_token, Transformer
from llm.objectives.log_probs import token_log_probs
from llm.objectives.loss import Loss
from llm.objectives.next_token import next_token
from llm.optim import make_optimizer, schedule
from llm.programs import make_step, one_update, Programs, state_of, text_rows
from llm.run import Result, Run, initializer
from llm.train_step import Objective


def run(run: Run) -> Result:
    config = run.config
    rows = run.corpora(prepare_text, 'train', seq_len=config.seq_len)
    stream = Mixture.from_config(rows, config.data, config.seed, config.batch_size)
    objective, tx = make_objective(run), make_optimizer(config.optim)
    state = run.train_state(initial(run), tx, parent_weights(run))
    train_step = make_step(run, objective, tx, state, schedule(config.optim))
    held_out = evaluator(run)
    to_measure = test_documents(run) if config.figures.rows else None

    with Journal(run, state, head='token', objective='next token', metric='bits_per_byte',
                 higher_is_better=False,
                 flops_per_token=train_flops_per_token(run.model_config, config.seq_len)) as journal:
        if journal.fresh:
            journal.evaluate(0, held_out, averaged(state))
            journal.save(0, state)
        batches = run.batches(stream.rows, journal.step, config.batch_size)
        step_fn = lambda state, batch: train_step(state, None, batch)
        state = journal.state
        for step, state, metrics in fit(state, step_fn, batches, start=journal.step, stop=journal.stop):
            journal.saw(step, metrics)
            last = step == journal.stop
            if every(config.log_every_steps, step):
                journal.train(step, metrics, tokens=step * config.batch_size * config.seq_len)
            if every(config.eval_every_steps, step) or last:
                journal.evaluate(step, held_out, averaged(state))
            if journal.due(step):
                journal.save(step, state)
        chosen = journal.chosen(state)
        journal.samples(functools.partial(samples, run, chosen))
        journal.figures(functools.partial(figures, run, chosen, to_measure))
        return journal.result()


def initial(run: Run) -> Callable[[jax.Array], Any]:
    """key -> parameters of the shape that this stage trains."""
    return initializer(Transformer(run.model_config, run.config.exec))


def parent_weights(run: Run) -> Any:
    """What training begins with: an earlier run's, or None. Not kept by name: the state has a copy of its own."""
    return run.load('init_from', Transformer(run.model_config, run.config.exec)) if run.parents else None


def make_objective(run: Run) -> Objective:
    """(params, frozen, batch, key) -> Loss of a batch of rows."""
    model = Transformer(run.model_config, run.config.exec, dropout=run.config.dropout)
    return functools.partial(language_loss, model, z_loss=run.config.z_loss)


def programs(run: Run, objective: Objective | None = None) -> Programs:
    """What a step compiles: one update."""
    config, tx = run.config, make_optimizer(run.config.optim)
    state = state_of(run, initial(run), tx)
    step = make_step(run, objective or make_objective(run), tx, state, schedule(config.optim))
    return one_update(state, step, text_rows(run, config.batch_size), tokens=config.batch_size * config.seq_len,
                      flops_per_token=functools.partial(train_flops_per_token, run.model_config, config.seq_len))


def language_loss(model: Transformer, params: Any, frozen: None, batch: dict[str, jax.Array],
                  key: jax.Array | None, *, z_loss: float) -> Loss:
    """Cross-entropy of the targets that count; without a key nothing is dropped out."""
    variables, mask = {'params': params}, MaskSpec(segments_BT=batch['segments_BT'])
    x_BTD = model.apply(variables, batch['tokens_BT'], batch['positions_BT'], mask, deterministic=key is None,
                        rngs=None if key is None else {'dropout': key}, method='hidden')
    log_probs = token_log_probs(x_BTD, model.apply(variables, method='unembedding'), batch['targets_BT'],
                                **model.log_probs_options())
    return next_token(log_probs, batch['mask_BT'], z_loss=z_loss)


def evaluator(run: Run, prepare: Callable = prepare_text) -> Callable[[Any], dict[str, float]]:
    """params -> held-out cross-entropy, in nats a token and in bits a byte of the predicted text."""
    model = Transformer(run.model_config, run.config.exec)
    bytes_V = jnp.asarray(run.tokenizer.token_bytes_V, jnp.float32)

    def objective(params, frozen, batch, key) -> Loss:
        loss = language_loss(model, params, frozen, batch, key, z_loss=0.0)
        size = jnp.sum(bytes_V[batch['targets_BT']] * batch['mask_BT'])
        return loss._replace(metrics={'bits_per_byte': (loss.terms['next_token'].sum / math.log(2), size)})
    return evaluate.make_evaluator(run, objective, run.corpora(prepare, 'validation', seq_len=run.config.seq_len))


def samples(run: Run, params: Any) -> list[dict[str, Any]]:
    """How the model continues the configured prompts."""
    prompts = run.config.samples.prompts
    ids = [run.tokenizer.encode_document(prompt)[0][:-1] for prompt in prompts]
    return [{'prompt': prompt, 'continuation': text}
            for prompt, text in zip(prompts, evaluate.answers(run, params, ids))]


def figures(run: Run, params: Any, of: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """Bits per byte of held-out documents, beside gzip's and trigrams'."""
    return bits_per_byte(run, params, of or test_documents(run))
