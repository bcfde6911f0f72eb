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
from llm.config import DataConfig
from llm.data.order import Mixture
from llm.data.prepare import prepare_chats
from llm.errors import UserError
from llm.journal import averaged, Journal
from llm.loop import every, fit
from llm.model.transformer import train_flops_per_token, Transformer
from llm.objectives.loss import Loss
from llm.objectives.next_token import per_chat
from llm.optim import make_optimizer, schedule
from llm.programs import make_step, Programs
from llm.run import Result, Run
from llm.stages import pretrain
from llm.train_step import Objective
from llm.yardsticks import logistic

_MOST_LABELS = 32  # of a source of choices

Chat = list[dict[str, str]]

initial = pretrain.initial
parent_weights = pretrain.parent_weights
evaluator = functools.partial(pretrain.evaluator, prepare=prepare_chats)


def run(run: Run) -> Result:
    config = run.config
    rows = run.corpora(prepare_chats, 'train', seq_len=config.seq_len)
    stream = Mixture.from_config(rows, config.data, config.seed, config.batch_size)
    objective, tx = make_objective(run), make_optimizer(config.optim)
    state = run.train_state(initial(run), tx, parent_weights(run))
    train_step = make_step(run, objective, tx, state, schedule(config.optim))
    held_out = evaluator(run)
    to_measure = measured(run) if config.figures.rows else None

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
            journal.saw(step, metrics)
            last = step == journal.stop
            if every(config.log_every_steps, step):
                journal.train(step, metrics, tokens=step * config.batch_size * config.seq_len)
            if every(config.eval_every_steps, step) or last:
                journal.evaluate(step, held_out, averaged(state))
            if journal.stale >= config.patience:
                journal.end(f'no better for {config.patience} evaluations')
            if journal.due(step):
                journal.save(step, state)
            if journal.ended:
                break
        chosen = journal.chosen(state)
        journal.samples(functools.partial(samples, run, chosen))
        journal.figures(functools.partial(figures, run, chosen, to_measure))
        return journal.result()


def make_objective(run: Run) -> Objective:
    """(params, frozen, batch, key) -> Loss of a batch of packed chats."""
    model = Transformer(run.model_config, run.config.exec, dropout=run.config.dropout)
    return functools.partial(answer_loss, model, run.config.weigh)


def programs(run: Run) -> Programs:
    """What a step compiles: one update."""
    return pretrain.programs(run, make_objective(run))


def answer_loss(model: Transformer, weigh: str, params: Any, frozen: None, batch: dict[str, jax.Array],
                key: jax.Array) -> Loss:
    """Cross-entropy of the answers' tokens, each token or each chat weighing the same."""
    if weigh == 'chats':
        batch = {**batch, 'mask_BT': per_chat(batch['mask_BT'], batch['segments_BT'])}
    loss = pretrain.language_loss(model, params, frozen, batch, key, z_loss=0.0)
    # Held-out losses are means over tokens; what is none does not go by their name.
    return loss if weigh == 'tokens' else loss._replace(terms={'next_token_by_chat': loss.terms['next_token']})


def samples(run: Run, params: Any) -> list[dict[str, Any]]:
    """How the model answers the configured prompts."""
    prompts = run.config.samples.prompts
    ids = [run.tokenizer.encode_prompt([{'role': 'user', 'content': prompt}]) for prompt in prompts]
    return [{'prompt': prompt, 'answer': text}
            for prompt, text in zip(prompts, evaluate.answers(run, params, ids))]


def measured(run: Run) -> tuple[dict[str, list[Chat]], dict[str, list[Chat]]]:
    """What figures are of, by source: chats of `data`, and of `choices`."""
    answered, asked = ({name: chats(run, data, name, split)
                        for name, split in figures_lib.test_splits(data).items()}
                       for data in (run.config.data, run.config.choices))
    return answered, {name: with_labels(run, name, found) for name, found in asked.items()}


def figures(run: Run, params: Any, of: tuple[dict[str, list[Chat]], dict[str, list[Chat]]] | None = None
            ) -> dict[str, Any]:
    """Loss of held-out answers, and how often the likeliest label is right, beside the parent's and a linear model's.

    Chats that are longer than a row are left out, as in training.
    """
    config, read = run.config, figures_lib.reader(run)
    models = {'model': params, 'parent': run.load('init_from', Transformer(run.model_config, config.exec))}
    answered, asked = of or measured(run)
    return {
        'split': figures_lib.said(figures_lib.test_splits(config.data) | figures_lib.test_splits(config.choices)),
        'answer_nats': {name: answer_nats(run, read, models, found) for name, found in answered.items()},
        'choices': {name: choices(run, read, models, found) for name, found in asked.items()}}


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


def with_labels(run: Run, name: str, found: list[Chat]) -> list[Chat]:
    """At most `figures.rows` of a source's chats, those that fit a row with each of the labels.

    Raises UserError where the answers are no labels, or nothing fits.
    """
    labels = {messages[-1]['content'] for messages in found}
    if not 2 <= len(labels) <= _MOST_LABELS:
        raise UserError(f'choices.sources.{name} has {len(labels)} different answers; use one with 2 to {_MOST_LABELS}')
    left = run.config.seq_len - max(len(run.tokenizer.encode_answer(label)) for label in labels)
    fit = [messages for messages in found if len(run.tokenizer.encode_prompt(messages[:-1])) <= left]
    if not fit:
        raise UserError(f'choices.sources.{name} has no chat of seq_len={run.config.seq_len} tokens or fewer; '
                        f'use shorter ones')
    return evaluate.spread(fit, run.config.figures.rows)


def choices(run: Run, read: Callable, models: dict[str, Any], found: list[Chat]) -> dict[str, Any]:
    """Shares of chats whose own last answer is the likeliest of all labels, its end token included.

    `tfidf_logistic` is a linear model of the words before the answer, fitted on the training chats that end in one of
    the labels; null where those have but one.
    """
    tokenizer, labels = run.tokenizer, sorted({messages[-1]['content'] for messages in found})
    answers = [tokenizer.encode_answer(label) for label in labels]
    prompts = [tokenizer.encode_prompt(messages[:-1]) for messages in found]
    sequences = [(prompt + answer, [0] * len(prompt) + [1] * len(answer)) for prompt in prompts for answer in answers]
    right = np.array([labels.index(messages[-1]['content']) for messages in found])

    def share(params: Any) -> float:
        return float(np.mean(read(params, sequences).reshape(-1, len(labels)).argmin(axis=1) == right))
    return {'rows': len(found), 'labels': labels, **{key: share(params) for key, params in models.items()},
            'tfidf_logistic': linear(run, labels, found)}


def linear(run: Run, labels: list[str], found: list[Chat]) -> float | None:
    """Accuracy on these chats of TF-IDF and logistic regression, fitted on the training chats with these labels."""
    trained = [messages for name in run.config.data.sources for messages in chats(run, run.config.data, name, 'train')
               if messages[-1]['content'] in labels]

    def text(messages: Chat) -> str:
        return '\n'.join(message['content'] for message in messages[:-1])
    texts = [text(messages) for messages in trained]
    chosen = figures_lib.fitted_on(run, texts)
    try:
        model = logistic([texts[index] for index in chosen], [trained[index][-1]['content'] for index in chosen])
    except ValueError:  # no word in any, or but one label
        return None
    said = model.predict([text(messages) for messages in found])
    return float(np.mean([one == messages[-1]['content'] for one, messages in zip(said, found)]))
