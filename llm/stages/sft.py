"""Supervised fine-tuning: base model -> a model that answers. Learns the answers of packed chats.

In: sources of chats; a base model. Out: checkpoints with a token head, answers to the configured prompts.
Left out: the loss, which is pretraining's on other rows; the chat template (`data.tokenizer`).
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from llm import evaluate
from llm import figures as figures_lib
from llm.config import DataConfig, UserError
from llm.data.order import Mixture
from llm.data.prepare import prepare_chats
from llm.journal import averaged, Journal
from llm.loop import every, fit
from llm.model.transformer import train_flops_per_token, Transformer
from llm.objectives.loss import Loss
from llm.objectives.next_token import per_chat
from llm.optim import make_optimizer, schedule
from llm.run import Result, Run
from llm.stages import pretrain
from llm.train_state import shardings
from llm.train_step import make_train_step
from llm.yardsticks import logistic

_MOST_LABELS = 32  # of a source of choices

Chat = list[dict[str, str]]

initial = pretrain.initial
evaluator = functools.partial(pretrain.evaluator, prepare=prepare_chats)


def run(run: Run) -> Result:
    config = run.config
    rows = run.corpora(prepare_chats, 'train', seq_len=config.seq_len)
    stream = Mixture.from_config(rows, config.data, config.seed, config.batch_size)
    model = Transformer(run.model_config, config.exec, dropout=config.dropout)
    objective = functools.partial(answer_loss, model, config.weigh)
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
        chosen = journal.chosen(state)
        journal.samples(functools.partial(samples, run, chosen))
        journal.figures(functools.partial(figures, run, chosen))
        return journal.result()


def answer_loss(model: Transformer, weigh: str, params: Any, frozen: None, batch: dict[str, jax.Array],
                key: jax.Array) -> Loss:
    """Cross-entropy of the answers' tokens, each token or each chat weighing the same."""
    if weigh == 'chats':
        batch = {**batch, 'mask_BT': per_chat(batch['mask_BT'], batch['segments_BT'])}
    return pretrain.language_loss(model, params, frozen, batch, key, z_loss=0.0)


def samples(run: Run, params: Any) -> list[dict[str, Any]]:
    """How the model answers the configured prompts."""
    prompts = run.config.samples.prompts
    ids = [run.tokenizer.encode_prompt([{'role': 'user', 'content': prompt}]) for prompt in prompts]
    return [{'prompt': prompt, 'answer': text}
            for prompt, text in zip(prompts, evaluate.answers(run, params, ids))]


def figures(run: Run, params: Any) -> dict[str, Any]:
    """Loss of held-out answers, and how often the likeliest label is right, beside the parent's and a linear model's.

    Chats that are longer than a row are left out, as in training.
    """
    config, read = run.config, figures_lib.reader(run)
    models = {'model': params, 'parent': run.load('init_from', Transformer(run.model_config, config.exec))}
    splits, choice_splits = figures_lib.test_splits(config.data), figures_lib.test_splits(config.choices)
    return {
        'split': figures_lib.said(splits | choice_splits),
        'answer_nats': {name: answer_nats(run, read, models, chats(run, config.data, name, split))
                        for name, split in splits.items()},
        'choices': {name: choices(run, read, models, name, chats(run, config.choices, name, split))
                    for name, split in choice_splits.items()}}


def chats(run: Run, data: DataConfig, name: str, split: str) -> list[Chat]:
    """The messages of a source's chats, those that end in an answer."""
    found = [record['messages'] for record in figures_lib.records(run, data, name, split, 'chat')]
    return [messages for messages in found if messages[-1]['role'] == 'assistant']


def answer_nats(run: Run, read: Callable, models: dict[str, Any], found: list[Chat]) -> dict[str, float]:
    """Cross-entropy of at most `figures.rows` chats' answers and their ends, nats a token, by model."""
    coded = [run.tokenizer.encode_chat(messages) for messages in found]
    coded = evaluate.spread([chat for chat in coded if len(chat[0]) <= run.config.seq_len], run.config.figures.rows)
    count = sum(sum(learn) for _, learn in coded)
    return {key: float(read(params, coded).sum()) / count for key, params in models.items()} if count else {}


def choices(run: Run, read: Callable, models: dict[str, Any], name: str, found: list[Chat]) -> dict[str, Any]:
    """Shares of chats whose own last answer is the likeliest of all labels, its end token included.

    `tfidf_logistic` is a linear model of the words before the answer, fitted on the training chats that end in one of
    the labels; null where those have but one.
    """
    tokenizer, labels = run.tokenizer, sorted({messages[-1]['content'] for messages in found})
    if len(labels) > _MOST_LABELS:
        raise UserError(f'choices.sources.{name} has {len(labels)} different answers; use one with few labels')
    answers = [tokenizer.encode_answer(label) for label in labels]
    prompts = [tokenizer.encode_prompt(messages[:-1]) for messages in found]
    fits = [len(prompt) + max(map(len, answers)) <= run.config.seq_len for prompt in prompts]
    found, prompts = ([item for item, fit in zip(items, fits) if fit] for items in (found, prompts))
    sequences = [(prompt + answer, [0] * len(prompt) + [1] * len(answer)) for prompt in prompts for answer in answers]
    right = np.array([labels.index(messages[-1]['content']) for messages in found])

    def share(params: Any) -> float:
        return float(np.mean(read(params, sequences).reshape(-1, len(labels)).argmin(axis=1) == right))
    shares = {key: share(params) for key, params in models.items()} if found else {}
    return {'rows': len(found), 'labels': labels, **shares, 'tfidf_logistic': linear(run, labels, found)}


def linear(run: Run, labels: list[str], found: list[Chat]) -> float | None:
    """Accuracy on these chats of TF-IDF and logistic regression, fitted on the training chats with these labels."""
    trained = [messages for name in run.config.data.sources for messages in chats(run, run.config.data, name, 'train')
               if messages[-1]['content'] in labels]
    if not found or len({messages[-1]['content'] for messages in trained}) < 2:
        return None

    def text(messages: Chat) -> str:
        return '\n'.join(message['content'] for message in messages[:-1])
    try:
        model = logistic([text(messages) for messages in trained], [messages[-1]['content'] for messages in trained])
    except ValueError:  # no word in any
        return None
    said = model.predict([text(messages) for messages in found])
    return float(np.mean([one == messages[-1]['content'] for one, messages in zip(said, found)]))
