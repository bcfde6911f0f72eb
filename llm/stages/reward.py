"""Reward modelling: SFT model -> scorer. Learns from people's rankings of several answers to one prompt.

In: ranked answers; the SFT model, whose trunk is copied under a new scalar head; prompts.
Out: checkpoints with a scalar head; in their manifests the mean and deviation of its scores of the SFT model's own
answers to training prompts, so that a reward of 0 means "as good as SFT" and 1 is one deviation.
Left out: the loss (`objectives.preference`).

Answers are read several in a row, as they fit (`rollout.packing`). Dropout draws by the place in these rows: as with
micro-batches, a mesh with too many shards for four answers in each row draws otherwise. Tokens and MFU in the metrics
count whole rows of one answer each.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from llm import evaluate
from llm import pairs
from llm.data.order import Mixture
from llm.data.prepare import prepare_prompts, prepare_ranked
from llm.envs.preference import final_scores
from llm.errors import UserError
from llm.figures import over_rows
from llm.journal import averaged, Journal
from llm.loop import every, fit
from llm.model.attention import MaskSpec
from llm.model.transformer import train_flops_per_token, Transformer
from llm.objectives.loss import Loss
from llm.objectives.preference import k_wise, pair_accuracy
from llm.optim import make_optimizer, schedule
from llm.programs import make_step, one_update, Programs, shape_rows, state_of
from llm.rollout.generate import Generation, make_generate
from llm.rollout.packing import make_pack, Packing
from llm.run import Result, Run, initializer
from llm.sharding import check_batch, global_batch
from llm.train_step import Objective

GAPS = (0.5, 1.0, 2.0)  # of mean human ratings; pairs further apart are easier


def run(run: Run) -> Result:
    config = run.config
    rows = run.corpora(prepare_ranked, 'train', seq_len=config.seq_len, answers=config.ranked_answers)
    stream = Mixture.from_config(rows, config.data, config.seed, config.batch_size)
    objective, tx = make_objective(run), make_optimizer(config.optim)
    packed = make_packed(run, config.exec.micro_batches)
    state = run.train_state(initial(run), tx, parent_weights(run))
    train_step = make_step(run, objective, tx, state, schedule(config.optim))
    held_out = evaluator(run)
    answers = sft_answers(run)
    to_measure = pairs.measured(run) if config.figures.rows else None

    with Journal(run, state, head='scalar', objective='k-wise ranking', metric='k_wise',
                 higher_is_better=False,
                 flops_per_token=train_flops_per_token(run.model_config, config.seq_len, logits_share=0.0),
                 normalizer=make_normalizer(run, answers)) as journal:
        if journal.fresh:
            journal.evaluate(0, held_out, averaged(state))
            journal.save(0, state)
        batches = run.batches(stream.rows, journal.step, config.batch_size)
        step_fn = lambda state, groups: train_step(state, None, packed(groups))
        state = journal.state
        for step, state, metrics in fit(state, step_fn, batches, start=journal.step, stop=journal.stop):
            journal.saw(step, metrics)
            last = step == journal.stop
            if every(config.log_every_steps, step):
                journal.train(step, metrics, tokens=step * config.batch_size * config.ranked_answers * config.seq_len)
            if every(config.eval_every_steps, step) or last:
                journal.evaluate(step, held_out, averaged(state))
            if journal.due(step):
                journal.save(step, state)
        chosen = journal.chosen(state)
        journal.samples(functools.partial(samples, run, chosen, answers))
        journal.figures(functools.partial(figures, run, chosen, to_measure))
        return journal.result()


def initial(run: Run) -> Callable[[jax.Array], Any]:
    """key -> parameters of the shape that this stage trains."""
    return initializer(Transformer(run.model_config, run.config.exec, head='scalar'))


def parent_weights(run: Run) -> Any:
    """The SFT model's trunk. Not kept by name: the state has a copy of its own."""
    return run.load('init_from', Transformer(run.model_config, run.config.exec, head='scalar'), trunk_only=True)


def make_objective(run: Run) -> Objective:
    """(params, frozen, batch, key) -> Loss of a batch of packed groups."""
    model = Transformer(run.model_config, run.config.exec, head='scalar', dropout=run.config.dropout)
    return functools.partial(ranking_loss, model)


def make_packed(run: Run, micro_batches: int) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
    """Returns packed(groups) -> a batch of that many micro-batches, whose rows hold several answers each.

    Groups are `data.rows.RankedRows`'; a micro-batch has all answers of its groups. Their lengths go to the host here.
    The batch: tokens_BT, positions_BT, segments_BT of rows; of groups end_BR, the place of an answer's last token in
    its micro-batch (0 where there is no answer), and the groups' other fields.
    """
    pack = make_pack(run.model_config, run.config.exec)

    def lay(groups: dict[str, jax.Array], packing: Packing) -> dict[str, jax.Array]:
        length_BR, width = groups['length_BR'], packing.source_RW.shape[1]
        place_AT = packing.back(jnp.arange(packing.source_RW.size).reshape(packing.source_RW.shape), length_BR.size)
        end_BR = jnp.take_along_axis(place_AT, length_BR.reshape(-1, 1) - 1, 1).reshape(length_BR.shape)
        end_BR = end_BR // width // micro_batches * width + end_BR % width
        others = {name: field for name, field in groups.items() if name not in ('tokens_BRT', 'length_BR')}
        return {'tokens_BT': packing.lay(groups['tokens_BRT']), 'positions_BT': packing.positions_RW,
                'segments_BT': packing.segments_RW, 'end_BR': end_BR, **others}
    lay = jax.jit(lay, out_shardings=run.rows_sharding)

    def packed(groups: dict[str, jax.Array]) -> dict[str, jax.Array]:
        length_BR = multihost_utils.process_allgather(groups['length_BR'], tiled=True)
        answers = np.arange(length_BR.size).reshape(-1, micro_batches, length_BR.shape[1])
        return lay(groups, pack(answers.swapaxes(0, 1).reshape(micro_batches, -1), length_BR.reshape(-1),
                                np.ones(length_BR.size, np.int64), length=run.config.seq_len, most_chosen=1))
    return packed


def programs(run: Run) -> Programs:
    """What a step compiles, where every answer fills a row: one update, the most tokens that there may be.

    Packing is not in it. Packed rows may have up to three times as many scores, where attention holds them ('einsum').
    """
    config, tx = run.config, make_optimizer(run.config.optim)
    state, answers = state_of(run, initial(run), tx), (config.ranked_answers,)
    rows, length = config.batch_size * config.ranked_answers, (config.seq_len,)
    batch = shape_rows(run, rows, tokens_BT=(length, jnp.int32), positions_BT=(length, jnp.int32),
                       segments_BT=(length, jnp.int32))
    batch |= shape_rows(run, config.batch_size, end_BR=(answers, jnp.int32), score_BR=(answers, jnp.float32),
                        valid_BR=(answers, jnp.bool_))
    return one_update(state, make_step(run, make_objective(run), tx, state, schedule(config.optim)), batch,
                      tokens=rows * config.seq_len,
                      flops_per_token=functools.partial(train_flops_per_token, run.model_config, config.seq_len,
                                                        logits_share=0.0))


def ranking_loss(model: Transformer, params: Any, frozen: None, batch: dict[str, jax.Array],
                 key: jax.Array | None) -> Loss:
    """K-wise loss of a batch of groups; without a key nothing is dropped out."""
    return k_wise(group_scores(model, params, batch, key), batch['score_BR'], batch['valid_BR'])


def group_scores(model: Transformer, params: Any, batch: dict[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """score_BR of packed groups: the scalar head at each answer's last token."""
    rngs = None if key is None else {'dropout': key}
    score_BT = model.apply({'params': params}, batch['tokens_BT'], batch['positions_BT'],
                           MaskSpec(segments_BT=batch['segments_BT']), deterministic=rngs is None, rngs=rngs)
    return jnp.ravel(score_BT)[batch['end_BR']]


def evaluator(run: Run) -> Callable[[Any], dict[str, float]]:
    """params -> held-out loss and accuracy, over all pairs and over those whose ratings lie further apart."""
    config = run.config
    model = Transformer(run.model_config, config.exec, head='scalar')

    def objective(params, frozen, batch, key) -> Loss:
        score_BR = group_scores(model, params, batch, key)
        loss = k_wise(score_BR, batch['score_BR'], batch['valid_BR'])
        by_gap = pair_accuracy(score_BR, batch['score_BR'], batch['valid_BR'], GAPS)
        return loss._replace(metrics=loss.metrics | by_gap)
    rows = run.corpora(prepare_ranked, 'validation', seq_len=config.seq_len, answers=config.ranked_answers)
    return evaluate.make_evaluator(run, objective, rows, make_packed(run, 1))


def sft_answers(run: Run) -> Generation:
    """What the SFT policy says to training prompts: the same answers at every call."""
    config = run.config
    check_batch('normalize_samples', config.normalize_samples, run.mesh, run.rules)
    rows = run.corpora(prepare_prompts, 'train', config.prompt_data, seq_len=config.max_prompt_tokens)
    prompts = Mixture.from_config(rows, config.prompt_data, config.seed, config.batch_size)
    index_B = np.arange(config.normalize_samples, dtype=np.int32)
    batch = global_batch(lambda rows: {**prompts.rows(rows), 'index_B': rows}, index_B, run.rows_sharding)
    policy = Transformer(run.model_config, config.exec)
    special = run.tokenizer.special_ids
    generate = jax.jit(make_generate(policy, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                                     eos_id=special['eos'], pad_id=special['pad']))
    return generate(run.load('init_from', policy), batch['tokens_BT'], batch['length_B'], batch['index_B'],
                    jax.random.key(config.seed))


def make_scores(run: Run) -> Callable[[Any, Generation], np.ndarray]:
    """Returns score(params, answers) -> [rows] float64, the same in every process."""
    score = jax.jit(functools.partial(final_scores, Transformer(run.model_config, run.config.exec, head='scalar')))

    def scores(params: Any, answers: Generation) -> np.ndarray:
        score_B = score(params, answers.tokens_BT, answers.length_B)
        return np.asarray(multihost_utils.process_allgather(score_B, tiled=True), np.float64)
    return scores


def make_normalizer(run: Run, answers: Generation) -> Callable[[Any], dict[str, float]]:
    """params -> mean and (population) deviation of the scores of these answers."""
    scores = make_scores(run)

    def normalizer(params: Any) -> dict[str, float]:
        score_B = scores(params, answers)
        if not score_B.std() > 0:
            raise UserError(f'the scores of normalize_samples={run.config.normalize_samples} answers are all alike; '
                            f'use more of them, or a lower optim.learning_rate')
        return {'mean': float(score_B.mean()), 'deviation': float(score_B.std())}
    return normalizer


def samples(run: Run, params: Any, answers: Generation | None = None) -> list[dict[str, Any]]:
    """The SFT policy's answers, from the best to the worst by the scorer, in deviations from their mean."""
    answers = answers or sft_answers(run)
    score_B = make_scores(run)(params, answers)
    score_B = (score_B - score_B.mean()) / score_B.std()
    said = evaluate.texts(run, multihost_utils.process_allgather(answers, tiled=True))
    return [{'score': round(float(score_B[row]), 3), 'answer': said[row]} for row in np.argsort(-score_B)]


def answer_scores(run: Run) -> Callable[[Any, dict[str, np.ndarray]], np.ndarray]:
    """Returns score(params, rows) -> [rows] scores of single answers; rows have tokens_BT and length_B."""
    model = Transformer(run.model_config, run.config.exec, head='scalar')
    return over_rows(run, lambda params, rows: final_scores(model, params, rows['tokens_BT'], rows['length_B']))


def figures(run: Run, params: Any, of: pairs.Measured | None = None) -> dict[str, Any]:
    """Share of the test split's pairs that the scorer orders as people do, beside yardsticks; its calibration."""
    return pairs.measure(run, functools.partial(answer_scores(run), params), GAPS, of or pairs.measured(run))
