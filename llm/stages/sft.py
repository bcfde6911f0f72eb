"""Supervised fine-tuning: base model -> a model that answers. Learns the answers of packed chats.

In: sources of chats; a base model. Out: checkpoints with a token head, answers to the configured prompts.
Left out: the loss, which is pretraining's on other rows; the chat template (`data.tokenizer`).
"""

import functools
from typing import Any

from llm import evaluate
from llm.data.order import Mixture
from llm.data.prepare import prepare_chats
from llm.journal import averaged, Journal
from llm.loop import every, fit
from llm.model.transformer import train_flops_per_token, Transformer
from llm.optim import make_optimizer, schedule
from llm.run import Result, Run
from llm.stages import pretrain
from llm.train_state import shardings
from llm.train_step import make_train_step

initial = pretrain.initial
evaluator = functools.partial(pretrain.evaluator, prepare=prepare_chats)


def run(run: Run) -> Result:
    config = run.config
    rows = run.corpora(prepare_chats, 'train', seq_len=config.seq_len)
    stream = Mixture(rows, run.weights, config.seed)
    model = Transformer(run.model_config, config.exec, dropout=config.dropout)
    objective = functools.partial(pretrain.language_loss, model, z_loss=0.0)
    tx = make_optimizer(config.optim)
    state = run.train_state(initial(run), tx, run.load('init_from', model))
    train_step = make_train_step(objective, tx, shardings=shardings(state), schedule=schedule(config.optim),
                                 micro_batches=config.exec.micro_batches, ema_decay=config.optim.ema_decay)
    held_out = evaluator(run)

    with Journal(run, state, head='token', objective='next token of answers', metric='next_token',
                 higher_is_better=False,
                 flops_per_token=train_flops_per_token(run.model_config, config.seq_len)) as journal:
        if journal.fresh:
            journal.evaluate(0, held_out, averaged(state))
            journal.save(0, state)
        batches = run.batches(stream.rows, journal.step, config.batch_size)
        step_fn = lambda state, batch: train_step(state, None, batch)
        state = journal.state
        for step, state, metrics in fit(state, step_fn, batches, start=journal.step, stop=journal.stop):
            last = step == journal.stop
            if every(config.log_every_steps, step):
                journal.train(step, metrics, tokens=step * config.batch_size * config.seq_len)
            if every(config.eval_every_steps, step) or last:
                journal.evaluate(step, held_out, averaged(state))
            if journal.stale >= config.patience:
                journal.end(f'no better for {config.patience} evaluations')
            if every(config.save_every_steps, step) or last or journal.best_step == step or journal.ended:
                journal.save(step, state)
            if journal.ended:
                break
        journal.samples(functools.partial(samples, run, journal.chosen(state)))
        return journal.result()


def samples(run: Run, params: Any) -> list[dict[str, Any]]:
    """How the model answers the configured prompts."""
    prompts = run.config.samples.prompts
    ids = [run.tokenizer.encode_prompt([{'role': 'user', 'content': prompt}]) for prompt in prompts]
    return [{'prompt': prompt, 'answer': text}
            for prompt, text in zip(prompts, evaluate.answers(run, params, ids))]
