"""Proximal policy optimisation: SFT model and scorer -> aligned policy. Learns from its own answers, scored.

In: prompts; the SFT model (policy at the start, and frozen reference); the scorer (frozen, and value at the start).
Out: checkpoints with parameters {'policy', 'value'}; the best of the steps near SFT; answers to held-out prompts.
Left out: the maths (`objectives.ppo`), sampling and scoring (`ppo_models`), what chooses a step (`judges`).

A step here is an iteration: rollout, score, then epochs of minibatches. Nothing is saved within one, so that
trajectories need no saving. Models are read at the sampling temperature, but for the chats of PPO-ptx, at 1.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm import judges
from llm.config import PPOConfig
from llm.data.order import Mixture
from llm.data.prepare import prepare_chats, prepare_prompts
from llm.figures import test_splits
from llm.journal import averaged, Journal
from llm.loop import every, fit
from llm.model.transformer import train_flops_per_token
from llm.objectives import ppo
from llm.objectives.loss import Loss, join, weighted
from llm.optim import by_top_key, make_optimizer
from llm.programs import make_step, Program, Programs, shape_rows, state_of, text_rows
from llm.rollout.generate import Generation, most_steps, slots_of
from llm.rollout.packing import make_pack, Packing
from llm.rollout.trajectories import Trajectories
from llm.run import Result, Run, initializer
from llm.sharding import replicated
from llm.stages import pretrain, sft
from llm.stages.ppo_models import (
    environment, initial, load_frozen, make_rollout, Models, models_of, parent_weights, read_log_probs,
    read_values, Rollout, rollout_exec, rollout_policy)
from llm.train_state import abstract_params, TrainState

_SAMPLING = 2**32 - 1  # a stream of keys apart from those of training steps
_CHATS = 'ptx_'  # before the names of fields of chats, where they stand beside those of prompts or trajectories


def run(run: Run) -> Result:
    config = run.config
    prompts, models = run.corpora(prepare_prompts, 'train', seq_len=config.max_prompt_tokens), models_of(run)
    env = environment(run, models, Mixture.from_config(
        prompts, config.data, config.seed, config.rollout_batch).rows)
    objective, tx = functools.partial(clipped_loss, run, models), optimizer(config)
    frozen, rollout = load_frozen(run), make_rollout(run, models, env)
    state = run.train_state(initial(run), tx, parent_weights(run, frozen))
    train_step = make_step(run, objective, tx, state)
    bench, to_measure = judges.Bench(run, rollout, frozen), measured(run) if config.figures.rows else None
    held_out = evaluator(run, bench)

    with Journal(run, state, head='token', objective='PPO', metric='gold' if config.gold_data.sources else 'reward',
                 higher_is_better=True, host={'kl_coef': config.kl_coef, 'sft': None, 'window': []}) as journal:
        host, held_out = journal.host, functools.partial(held_out, host=journal.host)
        eligible = functools.partial(judges.eligible, config, host)
        if journal.fresh:
            judges.watch(config, host, 0, journal.evaluate(0, held_out, averaged(state)))
            journal.save(0, state)
        batches = run.batches(with_chats(run, env.reset), journal.step, config.rollout_batch, 'rollout_batch')
        step_fn = make_iteration(run, rollout, frozen, train_step, host)
        state = journal.state
        for step, state, metrics in fit(state, step_fn, batches, start=journal.step, stop=journal.stop):
            journal.saw(step, metrics)
            last = step == journal.stop
            if every(config.log_every_steps, step):
                journal.train(step, metrics, tokens=step * config.rollout_batch * config.seq_len)
            if every(config.eval_every_steps, step) or last:
                judges.watch(config, host, step, journal.evaluate(step, held_out, averaged(state), eligible))
            if why := judges.beyond(config, metrics['kl'], host['window']):
                journal.end(f'{why}; step {journal.best_step} kept')
            if journal.due(step):
                journal.save(step, state)
            if journal.ended:
                break
        if journal.best_step == 0:
            run.say(f'{run.name}  step 0 is kept, the SFT policy itself: no later one was better and within bounds')
        chosen = journal.chosen(state)
        journal.samples(functools.partial(samples, run, chosen, bench))
        journal.figures(functools.partial(figures, run, chosen, bench, to_measure))
        return journal.result()


def optimizer(config: PPOConfig) -> optax.GradientTransformation:
    """Policy and value have a learning rate and clipping of their own; the policy rests during the warm-up."""
    updates = config.epochs * config.rollout_batch // config.batch_size  # of one iteration
    value = dataclasses.replace(config.optim, learning_rate=config.value_learning_rate)
    return by_top_key({'policy': make_optimizer(config.optim, frozen_steps=config.value_warmup_steps * updates),
                       'value': make_optimizer(value)})


def make_iteration(run: Run, rollout: Rollout, frozen: Any, train_step: Callable, host: dict[str, Any]) -> Callable:
    """Returns iteration(state, prompts) -> (state, metrics); `host['kl_coef']` is read and set by it."""
    config = run.config
    advantages, take = jax.jit(functools.partial(make_batch, config)), make_take(run)

    def iteration(state: TrainState, prompts: dict[str, jax.Array]) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _SAMPLING), state.step)
        chats = {name: prompts.pop(name) for name in list(prompts) if name.startswith(_CHATS)}
        with run.phases.during('rollout'):
            made = jax.block_until_ready(rollout.sample(state.params['policy'], prompts, key))
        with run.phases.during('score'):
            scored = rollout.score(state.params['value'], frozen, made, prompts['index_B'], state.step)
            trajectories, seen = jax.block_until_ready(scored)
        with run.phases.during('update'):
            batch, packing = advantages(trajectories, host['kl_coef']), rollout.packer(trajectories.mask_BT)
            updates = []
            for which_M in minibatches(config, int(state.step)):
                which_PM = which_M.reshape(-1, config.exec.micro_batches).T
                state, metrics = train_step(state, None, take(batch, packing(which_PM), chats, which_M))
                updates.append(metrics)
            jax.block_until_ready(updates)
        with np.errstate(invalid='ignore'):  # the journal sees what is not finite
            metrics = {name: float(np.mean([update[name] for update in updates])) for name in metrics}
        metrics |= {name: float(mean) for name, mean in seen.items()} | {'kl_coef': host['kl_coef']}
        host['kl_coef'] = ppo.adaptive_kl(host['kl_coef'], metrics['kl'], target=config.kl_target,
                                          horizon=config.kl_horizon, batch=config.rollout_batch)
        return state, metrics
    return iteration


def make_take(run: Run) -> Callable:
    """Compiles (batch, packing, chats, which_M) -> a minibatch: what is known of tokens, packed, and those chats."""
    def take(batch, packing, chats, which_M):
        of_tokens = {name: field for name, field in batch.items() if name.endswith('_BT')}
        return packing.batch(of_tokens) | {name: field[which_M] for name, field in chats.items()}
    return jax.jit(take, out_shardings=run.rows_sharding)


def programs(run: Run) -> Programs:
    """What an iteration compiles, but for cutting minibatches: a policy laid out anew, rollout, score, update."""
    config, models, tx = run.config, models_of(run), optimizer(run.config)
    state = state_of(run, initial(run), tx)
    scorer = abstract_params(initializer(models.scorer), run.mesh, run.rules)
    frozen = {'reference': state.params['policy'], 'scorer': scorer}
    rollout = make_rollout(run, models, environment(run, models, None))
    count, length = config.rollout_batch, (config.seq_len,)
    prompts = shape_rows(run, count, tokens_BT=((config.max_prompt_tokens,), jnp.int32), length_B=((), jnp.int32),
                         index_B=((), jnp.int32))
    made = Generation(**shape_rows(run, count, tokens_BT=(length, jnp.int32), mask_BT=(length, jnp.float32),
                                   logp_BT=(length, jnp.float32), length_B=((), jnp.int32)))
    reading = state.params['value'], frozen, made, prompts['index_B'], state.step, at_full_length(run, count)
    trajectories = jax.tree.map(functools.partial(_like_rows, run), jax.eval_shape(rollout.read, *reading)[0])
    whole = jax.eval_shape(functools.partial(make_batch, config), trajectories, state.step)
    chats = {_CHATS + name: field for name, field in text_rows(run, count).items()} if config.ptx_coef else {}
    batch = jax.tree.map(functools.partial(_like_rows, run), jax.eval_shape(
        make_take(run), whole, at_full_length(run, config.batch_size), chats, np.arange(config.batch_size)))
    tokens, trained = count * config.seq_len, config.batch_size * config.seq_len

    def flops(scores_share: float) -> tuple[float, float, float]:
        each = functools.partial(train_flops_per_token, seq_len=config.seq_len, scores_share=scores_share)
        policy = each(models.policy.config, logits_share=config.max_new_tokens / config.seq_len)
        value, reader = (each(model.config, logits_share=0.0) for model in (models.value, models.scorer))
        return policy / 3 * tokens, (policy + reader + value) / 3 * tokens, (policy + value) * trained
    sampling, scoring, updating = zip(flops(1.0), flops(0.5))
    key = jax.ShapeDtypeStruct((), state.key.dtype, sharding=replicated(run.mesh))
    resident = {**state.params, 'optimizer': state.opt_state, 'reference': frozen['reference'], 'reward': scorer}
    found = {
        'rollout': Program(rollout.generate, (rollout_policy(run, models), prompts, key),
                           () if config.rollout_rules else ('policy',), tokens, *sampling,
                           most_trips=most_decode_steps(run)),
        'score': Program(rollout.read, reading, ('value', 'reference', 'reward'), tokens, *scoring),
        'update': Program(make_step(run, functools.partial(clipped_loss, run, models), tx, state),
                          (state, None, batch), ('policy', 'value', 'optimizer'), trained, *updating,
                          calls=config.epochs * count // config.batch_size)}
    if config.rollout_rules:
        found = {'reshard': Program(rollout.reshard, (state.params['policy'],), ('policy',), 0, 0.0, 0.0), **found}
    return Programs(resident, found, tokens)


def most_decode_steps(run: Run) -> int:
    """Of a rollout."""
    samples = run.config.rollout_batch // math.prod(
        run.mesh.shape[axis] for axis in rollout_exec(run).rules['batch'])
    slots = slots_of(samples, run.mesh.devices.flat[0].platform)
    return most_steps(samples, slots, run.config.max_new_tokens)


def at_full_length(run: Run, count: int) -> Packing:
    """The shapes of so many trajectories, each of which fills a row: the most tokens that there may be.

    Not the most scores, where attention holds them ('einsum'): packed rows may have up to three times as many.
    """
    most = run.config.max_new_tokens
    packing = make_pack(run.model_config, run.config.exec)(
        np.arange(count)[None], np.full(count, run.config.seq_len), np.full(count, most), length=run.config.seq_len,
        most_chosen=most)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(run.mesh)), packing)


def _like_rows(run: Run, field: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The same field, laid out as batches are."""
    return jax.ShapeDtypeStruct(field.shape, field.dtype, sharding=run.rows_sharding)


def with_chats(run: Run, prompts: Callable) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Rows of the two streams at the same positions: prompts, and chats if there is a supervised term (PPO-ptx)."""
    config = run.config
    if not config.ptx_coef:
        return prompts
    rows = run.corpora(prepare_chats, 'train', config.ptx_data, seq_len=config.seq_len)
    chats = Mixture.from_config(rows, config.ptx_data, config.seed, config.rollout_batch)
    return lambda indices: prompts(indices) | {_CHATS + name: field for name, field in chats.rows(indices).items()}


def minibatches(config: PPOConfig, updates: int) -> Iterator[np.ndarray]:
    """Trajectories of each minibatch: every epoch is a new permutation of the rollout, by seed and updates done."""
    for epoch in range(config.epochs):
        generator = np.random.Generator(np.random.Philox(key=[config.seed, updates * config.epochs + epoch]))
        yield from generator.permutation(config.rollout_batch).reshape(-1, config.batch_size)


def make_batch(config: PPOConfig, trajectories: Trajectories, kl_coef: jax.Array) -> dict[str, jax.Array]:
    """Trajectories with advantages, after the KL penalty and maybe whitened over all of them, and with returns."""
    mask_BT = trajectories.mask_BT
    penalty_BT = ppo.kl_rewards(trajectories.logp_old_BT, trajectories.logp_ref_BT, jnp.zeros_like(mask_BT[:, 0]),
                                mask_BT, kl_coef=kl_coef)
    advantage_BT, return_BT = ppo.gae(trajectories.reward_BT + penalty_BT, trajectories.value_BT, mask_BT,
                                      discount=config.discount, gae_lambda=config.gae_lambda)
    return {**trajectories._asdict(), 'return_BT': return_BT,
            'advantage_BT': ppo.whiten(advantage_BT, mask_BT) if config.whiten_advantages else advantage_BT}


def clipped_loss(run: Run, models: Models, params: Any, frozen: None, batch: dict[str, jax.Array],
                 key: jax.Array) -> Loss:
    """The policy's and the value's clipped losses of a minibatch, maybe its chats', and the policy's entropy."""
    config, mask_BT = run.config, batch['mask_BT']
    new = read_log_probs(run, models, params['policy'], batch)
    value_BT = read_values(run, models, params['value'], batch)
    policy = ppo.policy_loss(new.logp_BT, batch['logp_old_BT'], batch['advantage_BT'], mask_BT,
                             clip_epsilon=config.clip_epsilon)
    value = ppo.value_loss(value_BT, batch['value_BT'], batch['return_BT'], mask_BT,
                           clip_epsilon=config.value_clip_epsilon, coef=config.value_coef)
    losses = [policy, value, Loss({}, {'entropy': weighted(new.entropy_BT, mask_BT)})]
    if config.ptx_coef:
        chats = {name.removeprefix(_CHATS): field for name, field in batch.items() if name.startswith(_CHATS)}
        chats_loss = pretrain.language_loss(models.policy, params['policy'], None, chats, None, z_loss=0.0)
        losses.append(ppo.supervised(chats_loss, coef=config.ptx_coef))
    return join(*losses)


def held_out_prompts(run: Run, split: str = 'validation') -> dict[str, Any]:
    return run.corpora(prepare_prompts, split, seq_len=run.config.max_prompt_tokens)


def held_out_bench(run: Run) -> judges.Bench:
    """With the training rollout's program, for a step that is looked at alone."""
    models, rows = models_of(run), next(iter(held_out_prompts(run).values()))
    return judges.Bench(run, make_rollout(run, models, environment(run, models, rows.rows)), load_frozen(run))


def evaluator(run: Run, bench: judges.Bench | None = None) -> Callable[..., dict[str, float]]:
    """Returns evaluate(params, host={}) -> `judges.numbers` of the answers to held-out prompts.

    What they are measured by, of the SFT policy's answers, is taken from host['sft'], or else put there.
    """
    bench = bench or held_out_bench(run)
    said, gold = functools.partial(judges.answers, bench, corpora=held_out_prompts(run)), bench.gold

    def evaluate_params(params: Any, host: dict[str, Any] | None = None) -> dict[str, float]:
        host = {} if host is None else host
        if not host.get('sft'):
            host['sft'] = judges.summary(said(bench.sft(params)), gold)
        return judges.numbers(said(params), host['sft'], gold)
    return evaluate_params


def samples(run: Run, params: Any, bench: judges.Bench | None = None) -> list[dict[str, Any]]:
    """Answers to the configured prompts; without any, to held-out ones, beside the reference's, with their rewards."""
    if run.config.samples.prompts:
        return sft.samples(run, params['policy'])
    bench = bench or held_out_bench(run)
    said = functools.partial(judges.answers, bench, corpora=held_out_prompts(run), most=run.config.rollout_batch)
    return judges.side_by_side(said(bench.sft(params)), said(params))


def measured(run: Run) -> tuple[str, dict[str, Any], judges.Rated | None]:
    """What figures are of: a split, its prompts, and rated texts by which the gold scorer itself is judged."""
    split = max(test_splits(run.config.data).values())  # validation, if a source has no test split
    return split, held_out_prompts(run, split), judges.rated(run, 'validation')


def figures(run: Run, params: Any, bench: judges.Bench | None = None, of: tuple | None = None) -> dict[str, Any]:
    """`judges.comparison` on what is `measured`: the SFT policy, this one, and the best of a few SFT answers."""
    bench, (split, prompts, rated) = bench or held_out_bench(run), of or measured(run)
    said = functools.partial(judges.answers, bench, corpora=prompts, most=run.config.figures.rows)
    tries = [said(bench.sft(params), attempt=n) for n in range(run.config.best_of)]
    return {'split': split, **judges.comparison(bench, tries, said(params), rated)}
