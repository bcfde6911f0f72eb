"""What a policy's answers to held-out prompts are worth: the numbers that choose PPO's step, and those that end it.

In: a compiled rollout; rated texts for a gold scorer, best ones that no model has seen; numbers of the SFT policy's
answers.
Out: `Answers`, held-out numbers, a reason to stop.
Left out: sampling (`rollout`), the scorer that is trained against (`envs.preference`), the yardsticks' own fits.

Whatever the policy is trained against gets better; the gold scorer tells whether the answers do. Distinct-2 is the
share of pairs of neighbouring tokens that are new, always at equal numbers of tokens: it falls with their number.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np

from llm import evaluate
from llm.config import PPOConfig
from llm.data import sources
from llm.data.tokenizer import Tokenizer
from llm.errors import UserError
from llm.figures import records
from llm.rollout.trajectories import Trajectories
from llm.run import Run
from llm.yardsticks import distinct_n, Fitted, lexicon, ridge

_HELD_OUT = 2**32 - 2  # a stream of keys apart from those of training steps
_SHOWN = 24  # prompts whose answers are shown side by side


class Answers(NamedTuple):
    """What was said to held-out prompts, in their order, on the host; arrays are float64."""

    prompts: list[str]  # with the marks of the chat template
    tokens: list[list[int]]  # the policy's own, without the end token
    texts: list[str]  # of these
    messages: list[str]  # with the beginnings that the prompts gave: what a reader of the reviews would see
    reward_B: np.ndarray  # the environment's
    kl_B: np.ndarray  # nats: log-ratio to the reference, summed over the answer
    length_B: np.ndarray  # tokens, the end token included
    ended_B: np.ndarray  # 1 where the end token came


class Rated(NamedTuple):
    """Texts and what people think of them."""

    texts: list[str]
    score_B: np.ndarray  # float64


@dataclasses.dataclass(frozen=True)
class Bench:
    """What makes a run's held-out answers, and what judges them: made once a run, each part when it is asked for."""

    run: Run
    rollout: Callable  # compiled, of a policy's parameters
    frozen: Any  # parameters of the reference, which is the SFT policy, and of the scorer

    @functools.cached_property
    def gold_texts(self) -> Rated | None:
        """What the gold scorer is fitted on."""
        return rated(self.run, 'train')

    @functools.cached_property
    def gold(self) -> Fitted | None:
        """The gold scorer; None where there is no `gold_data`."""
        if self.gold_texts is None:
            return None
        try:
            return ridge(*self.gold_texts)
        except ValueError as error:
            raise UserError(f'no gold scorer can be fitted on gold_data ({error}); give it more texts') from None

    def sft(self, params: dict[str, Any]) -> dict[str, Any]:
        """These parameters with the SFT policy in the policy's place."""
        return {**params, 'policy': self.frozen['reference']}


def answers(bench: Bench, params: Any, corpora: dict[str, Any], *, most: int | None = None,
            attempt: int = 0) -> Answers:
    """What params['policy'] says to held-out prompts, at most so many of each source (None: `eval_rows`).

    The same attempt draws with the same keys, whatever the policy: so two policies differ by less chance.
    """
    run, parts = bench.run, []
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(run.config.seed), _HELD_OUT), attempt)
    for rows in corpora.values():
        made = [bench.rollout(params, bench.frozen, batch, key)[0]
                for batch in evaluate.held_out_batches(run, rows, run.config.rollout_batch, most)]
        count = len(evaluate.held_out_indices(run, rows, most))  # the last batch is filled up
        parts.append(jax.tree.map(lambda *pieces: np.concatenate(pieces)[:count],
                                  *multihost_utils.process_allgather(made, tiled=True)))
    return read(run.tokenizer, jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts))


def read(tokenizer: Tokenizer, trajectories: Trajectories) -> Answers:
    """Answers from trajectories on the host; a row's chosen tokens stand together, as in a one-turn environment."""
    special = tokenizer.special_ids
    prompts, tokens, messages, ended = [], [], [], []
    for tokens_T, mask_T in zip(trajectories.tokens_BT.tolist(), trajectories.mask_BT.tolist()):
        said = [token for token, chosen in zip(tokens_T, mask_T) if chosen]
        before = tokens_T[:mask_T.index(1.0)]
        prompts.append(tokenizer.show(before))
        ended.append(said[-1] == special['eos'])
        tokens.append(said[:-1] if ended[-1] else said)
        messages.append(tokenizer.decode(tokenizer.begun(before) + tokens[-1]))
    return Answers(prompts, tokens, [tokenizer.decode(said) for said in tokens], messages,
                   *(np.sum(x_BT, axis=1, dtype=np.float64) for x_BT in (
                       trajectories.reward_BT, trajectories.logp_old_BT - trajectories.logp_ref_BT,
                       trajectories.mask_BT)), np.asarray(ended, np.float64))


def rated(run: Run, split: str) -> Rated | None:
    """All of a split of `gold_data`; None where there is no such data."""
    data, found = run.config.gold_data, []
    if not data.sources:
        return None
    for name, source in data.sources.items():
        sources.materialize(source, data.data_dir, run.progress)
        found += records(run, data, name, split, 'rated')
    if not found:
        raise UserError(f'gold_data has nothing for {split}; give it at least one record')
    return Rated([record['text'] for record in found], np.array([record['score'] for record in found]))


def summary(sft: Answers, gold: Fitted | None) -> dict[str, Any]:
    """What later numbers are measured by, as JSON: of the SFT policy's own answers."""
    kept = {'ended': float(sft.ended_B.mean()), 'tokens': sft.tokens}
    if gold is not None:
        gold_B = gold.predict(sft.messages)
        kept |= {'gold': float(gold_B.mean()), 'gold_deviation': float(gold_B.std())}
    return kept


def numbers(said: Answers, sft: dict[str, Any], gold: Fitted | None) -> dict[str, float]:
    """Means over answers, beside a `summary` of the SFT policy's.

    Returns: reward, in deviations of the scorer; kl, nats an answer; length, tokens; ended, a share; distinct_2;
      distinct_share, of the SFT policy's distinct-2 at as many tokens; with a gold scorer gold, in its ratings' unit,
      and gold_deviations, how far it is above the SFT policy's, in deviations of that one's answers.
    """
    tokens = min(sum(map(len, answers)) for answers in (said.tokens, sft['tokens']))
    distinct, before = (distinct_n(answers, 2, tokens) for answers in (said.tokens, sft['tokens']))
    values = {'reward': said.reward_B.mean(), 'kl': said.kl_B.mean(), 'length': said.length_B.mean(),
              'ended': said.ended_B.mean(), 'distinct_2': distinct,
              'distinct_share': distinct / before if before else 0.0}
    if gold is not None:
        values['gold'] = gold.predict(said.messages).mean()
        values['gold_deviations'] = (values['gold'] - sft['gold']) / (sft['gold_deviation'] or 1.0)
    return {name: float(value) for name, value in values.items()}


def eligible(config: PPOConfig, host: dict[str, Any], values: dict[str, float]) -> bool:
    """Whether a step may be chosen: near the SFT policy, as often at an end as it, nearly as diverse."""
    return (values['kl'] <= config.kl_budget and values['ended'] >= host['sft']['ended']
            and values['distinct_share'] >= config.min_distinct_share)


def watch(config: PPOConfig, host: dict[str, Any], step: int, values: dict[str, float]) -> None:
    """Keeps (step, gold, reward) of the last `gold_window` evaluations in host['window'], for `beyond`."""
    if config.gold_window and 'gold' in values:
        host['window'] = [*host['window'], [step, values['gold'], values['reward']]][-config.gold_window:]


def beyond(config: PPOConfig, kl: float, window: list[list[float]]) -> str | None:
    """Why training has to end here, if it has to: the KL budget is spent, or the scorer is over-optimised.

    Args:
      kl: of the rollout just trained on, nats an answer.
      window: (step, gold, reward) of the last evaluations, step 0 included; judged once it is `gold_window` long.
    """
    if kl > config.kl_budget:
        return f'kl {kl:.1f} beyond kl_budget={config.kl_budget:g} nats an answer'
    if not config.gold_window or len(window) < config.gold_window:
        return None
    # The ends of straight lines (least squares): less noisy than the first and the last evaluation.
    steps = np.array([step for step, _, _ in window])
    ends = {name: np.polyval(np.polyfit(steps, column, 1), steps[[0, -1]])
            for name, column in zip(('gold', 'reward'), np.array(window).T[1:])}
    if not (ends['gold'][1] < ends['gold'][0] and ends['reward'][1] > ends['reward'][0]):
        return None
    gold, reward = (f'{name} {ends[name][0]:.2f} -> {ends[name][1]:.2f}' for name in ('gold', 'reward'))
    return f'over-optimised: {gold} while {reward} over steps {steps[0]}..{steps[-1]}'


def side_by_side(sft: Answers, ppo: Answers, gold: Fitted | None = None) -> list[dict[str, Any]]:
    """Two policies' answers to the same prompts, with their scores, for a person to read."""
    rows = [{'prompt': prompt} for prompt in sft.prompts]
    for name, said in (('sft', sft), ('ppo', ppo)):
        columns = {name: said.texts, f'{name}_reward': said.reward_B.round(3).tolist()}
        if gold is not None:
            columns[f'{name}_gold'] = gold.predict(said.messages).round(3).tolist()
        for row, *cells in zip(rows, *columns.values()):
            row.update(zip(columns, cells))
    return rows


def best_of(tries: list[Answers]) -> Answers:
    """Of several answers to each prompt, the one with the highest reward (the first of equals)."""
    pick_B = np.argmax([said.reward_B for said in tries], axis=0)
    return Answers(*([fields[pick][row] for row, pick in enumerate(pick_B)] if isinstance(fields[0], list)
                     else np.stack(fields)[pick_B, np.arange(len(pick_B))] for fields in zip(*tries)))


def comparison(bench: Bench, tries: list[Answers], ppo: Answers, unseen: Rated | None) -> dict[str, Any]:
    """What a finished policy is worth beside the SFT policy (the first of `tries`) and the best of its tries.

    Args:
      unseen: rated texts that the gold scorer was not fitted on; None without `gold_data`.
    Returns: `policies`, by name: means over prompts of reward, vader (compound), ended, length (tokens), kl (nats);
      distinct_2, all at as many tokens; with `gold_data` gold, gold_deviations (see `numbers`) and their standard error
      over prompts, each answer beside the SFT policy's to the same prompt. For the best of N tries `kl_bound` instead
      of kl: log N - (N - 1) / N, which its divergence is at most (arXiv:2009.01325, app. G.3; arXiv:2401.01879).
      `samples`, side by side; with `gold_data`, `gold_scorer`: how many rows it was fitted on, and how often it
      orders pairs of at most `figures.rows` unseen texts as people do whose ratings differ by more than 1.
    """
    gold, count, sft = bench.gold, len(tries), tries[0]
    policies = {'sft': sft, 'ppo': ppo, f'best_of_{count}': best_of(tries)}
    tokens = min(sum(map(len, said.tokens)) for said in policies.values())
    table = {}
    for name, said in policies.items():
        table[name] = {
            'reward': said.reward_B.mean(), 'vader': lexicon(said.messages).mean(), 'kl': said.kl_B.mean(),
            'distinct_2': distinct_n(said.tokens, 2, tokens), 'ended': said.ended_B.mean(),
            'length': said.length_B.mean()}
        if gold is not None:
            table[name] |= _gold_gain(gold.predict(said.messages), gold.predict(sft.messages))
    table = {name: {key: float(value) for key, value in row.items()} for name, row in table.items()}
    table[f'best_of_{count}'] |= {'kl': None, 'kl_bound': math.log(count) - (count - 1) / count}
    found = {'prompts': len(sft.prompts), 'tokens': tokens, 'policies': table,
             'samples': side_by_side(sft, ppo, gold)[:_SHOWN]}
    return found if gold is None else found | {'gold_scorer': _check(bench, unseen)}


def _gold_gain(gold_B: np.ndarray, sft_B: np.ndarray) -> dict[str, float]:
    gain_B = (gold_B - sft_B) / (sft_B.std() or 1.0)
    return {'gold': gold_B.mean(), 'gold_deviations': gain_B.mean(),
            'gold_standard_error': gain_B.std(ddof=1) / len(gain_B)**0.5 if len(gain_B) > 1 else 0.0}


def _check(bench: Bench, unseen: Rated) -> dict[str, Any]:
    texts, human_B = (evaluate.spread(part, bench.run.config.figures.rows) for part in unseen)
    human_B, score_B = np.array(human_B), bench.gold.predict(texts)
    apart_BB = human_B[:, None] - human_B > 1
    right_BB = np.heaviside(score_B[:, None] - score_B, 0.5)
    return {'rows': len(bench.gold_texts.texts), 'pairs': int(apart_BB.sum()),
            'accuracy_gap_1': float(right_BB[apart_BB].mean()) if apart_BB.any() else None}
