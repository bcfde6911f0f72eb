"""Judges of held-out answers: what is read from trajectories, which steps may be chosen, what ends a run."""

import dataclasses
import math
import pathlib
import types

import numpy as np
import pytest

from llm import judges
from llm.errors import UserError
from llm.phases import Phases
from llm.pipeline import parse
from llm.rollout.trajectories import Trajectories
from tests import tiny

CONFIG = dataclasses.replace(parse(tiny.pipeline_config(pathlib.Path('nowhere')))['ppo'],
                             kl_budget=10.0, gold_window=4, min_distinct_share=0.8)


# Reading.

class Letters:
    """A tokenizer of letters; 0 pads, 1 is the end, 2 the user's mark, 3 the assistant's."""

    special_ids = {'pad': 0, 'eos': 1, 'user': 2, 'assistant': 3}

    def decode(self, ids):
        return ''.join(chr(index) for index in ids if index > 3)

    def begun(self, prompt):
        return prompt[len(prompt) - prompt[::-1].index(3):]

    def show(self, ids):
        return ''.join('_.?!'[index] if index < 4 else chr(index) for index in ids)


def trajectories() -> Trajectories:
    a, b, c, d = map(ord, 'abcd')
    tokens_BT = np.array([[2, a, 3, b, c, d, 1, 0], [2, a, 3, c, b, a, d, c], [2, b, 3, 1, 0, 0, 0, 0]], np.int32)
    mask_BT = np.array([[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0, 0]], np.float32)
    zeros_BT, zeros_B = np.zeros((3, 8), np.float32), np.zeros(3, np.int32)
    reward_BT = zeros_BT.copy()
    reward_BT[[0, 1, 2], [6, 7, 3]] = 1.5, -2.0, 0.25
    return Trajectories(tokens_BT, mask_BT, -1.0 * mask_BT, -3.0 * mask_BT, zeros_BT, reward_BT,
                        turn_BT=np.zeros((3, 8), np.int32), group_B=zeros_B, weights_version_B=zeros_B)


def test_answers_are_read_without_end_token_and_judged_with_the_beginning_they_were_given():
    said = judges.read(Letters(), trajectories())
    assert said.prompts == ['?a!b', '?a!', '?b!']
    assert said.texts == ['cd', 'cbadc', ''] and said.messages == ['bcd', 'cbadc', '']
    assert [len(tokens) for tokens in said.tokens] == [2, 5, 0]
    assert said.ended_B.tolist() == [1, 0, 1] and said.length_B.tolist() == [3, 5, 1]
    assert said.kl_B.tolist() == [6, 10, 2] and said.reward_B.tolist() == [1.5, -2.0, 0.25]


# Numbers.

class Length:
    """A gold scorer that likes long texts, and remembers what it read."""

    def predict(self, texts):
        self.read = list(texts)
        return np.array([len(text) for text in texts], float)


def answers(*tokens: list[int], reward_B=None, ended_B=None) -> judges.Answers:
    texts = [''.join(map(chr, ids)) for ids in tokens]
    zeros_B = np.zeros(len(tokens))
    return judges.Answers(['?'] * len(tokens), list(tokens), texts, ['>' + text for text in texts],
                          zeros_B if reward_B is None else np.array(reward_B, float), zeros_B,
                          np.array([len(ids) for ids in tokens], float),
                          zeros_B + 1 if ended_B is None else np.array(ended_B, float))


def test_the_sft_policys_own_answers_are_at_zero_with_all_their_diversity():
    sft = answers([5, 6, 7], [5, 6], [8, 9, 8, 9])
    values = judges.numbers(sft, judges.summary(sft, Length()), Length())
    assert values['gold_deviations'] == 0 and values['distinct_share'] == 1
    assert values['distinct_2'] == 4 / 6  # 56 and 89 come twice
    assert values['gold'] == 4 and values['length'] == 3


def test_gold_gain_is_in_deviations_of_the_sft_answers_and_whole_messages_are_judged():
    sft, gold = answers([5], [5, 6, 7]), Length()  # lengths 2 and 4 with what stands before: mean 3, deviation 1
    values = judges.numbers(answers([5] * 5, [6] * 6), judges.summary(sft, gold), gold)
    assert values['gold_deviations'] == pytest.approx(6.5 - 3)
    assert all(text.startswith('>') for text in gold.read)


def test_diversity_is_compared_at_equal_numbers_of_tokens():
    sft = answers([5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8])
    # The same policy, caught at its first answer: all of it is new, as was the first answer of the other.
    values = judges.numbers(answers([5, 6, 7, 8]), judges.summary(sft, None), None)
    assert (values['distinct_2'], values['distinct_share']) == (1, 1)
    poor = judges.numbers(answers([5, 5, 5, 5]), judges.summary(sft, None), None)
    assert poor['distinct_share'] == pytest.approx(1 / 3)
    mute = judges.numbers(answers([], []), judges.summary(sft, None), None)
    assert mute['distinct_share'] == 0 and 'gold' not in mute


# Choosing and ending.

@pytest.mark.parametrize('change, expected', [
    ({}, True), ({'kl': 10.0}, True), ({'kl': 10.1}, False), ({'ended': 0.89}, False),
    ({'distinct_share': 0.79}, False)])
def test_a_step_may_be_chosen_if_it_is_within_every_bound(change, expected):
    values = {'kl': 5.0, 'ended': 0.9, 'distinct_share': 0.8, **change}
    assert judges.eligible(CONFIG, {'sft': {'ended': 0.9}}, values) is expected


def window(gold, reward, steps=(0, 5, 10, 20)) -> list[list[float]]:
    host = {'window': []}
    for step, *scores in zip(steps, gold, reward):
        judges.watch(CONFIG, host, step, dict(zip(('gold', 'reward'), scores)))
    return host['window']


@pytest.mark.parametrize('gold, reward, ends', [
    ([4, 3, 2, 1], [1, 2, 3, 4], True),
    ([2, 3, 2, 1], [1, 2, 3, 4], True),  # a bump does not hide the fall
    ([4, 3, 2, 1], [4, 3, 2, 1], False),  # both fall: not the scorer's fault
    ([1, 2, 3, 4], [1, 2, 3, 4], False),
    ([1, 1, 1, 1], [1, 2, 3, 4], False),
    ([4, 3, 2], [1, 2, 3], False),  # too short
    ([0, 9, 4, 3, 2, 1], [0, 0, 1, 2, 3, 4], True),  # what is older than the window does not count
])
def test_falling_gold_under_a_rising_reward_ends_a_run(gold, reward, ends):
    why = judges.beyond(CONFIG, 1.0, window(gold, reward, steps=(0, 5, 10, 20, 25, 30)))
    assert (why is not None) is ends


def test_the_reason_tells_the_ends_of_the_lines_and_the_steps():
    why = judges.beyond(CONFIG, 1.0, window([4, 3, 2, 1], [1, 2, 3, 4], steps=(5, 6, 7, 8)))
    assert why == 'over-optimised: gold 4.00 -> 1.00 while reward 1.00 -> 4.00 over steps 5..8'
    assert judges.beyond(CONFIG, 10.4, []) == 'kl 10.4 beyond kl_budget=10 nats an answer'
    assert judges.beyond(CONFIG, math.nan, []) is None  # such a state is not saved; the journal ends the run


def test_without_a_window_nothing_is_kept_and_nothing_ends():
    config, host = dataclasses.replace(CONFIG, gold_window=0), {'window': []}
    for step in range(9):
        judges.watch(config, host, step, {'gold': -step, 'reward': step})
    assert host['window'] == [] and judges.beyond(config, 1.0, []) is None


# Figures.

def test_the_best_of_several_answers_is_the_one_with_the_highest_reward():
    tries = [answers([5], [6, 6], reward_B=[1, 0], ended_B=[1, 0]), answers([7, 7, 7], [8], reward_B=[0, 2])]
    best = judges.best_of(tries)
    assert best.tokens == [[5], [8]] and best.reward_B.tolist() == [1, 2]
    assert best.length_B.tolist() == [1, 1] and best.ended_B.tolist() == [1, 1]
    assert best.texts == [chr(5), chr(8)]


def test_the_best_of_a_hundred_answers():
    best = judges.best_of([answers([5], reward_B=[number % 71]) for number in range(100)])
    assert best.reward_B.tolist() == [70]


@pytest.fixture
def run(tmp_path):
    """As much of a run as judges ask for, over generated ratings."""
    tiny.write_data(tmp_path)
    config = parse(tiny.pipeline_config(tmp_path))['ppo']
    return types.SimpleNamespace(config=config, progress=lambda *work: None, phases=Phases(),
                                 account=lambda *said: None)


def bench_of(run) -> judges.Bench:
    return judges.Bench(run, None, None)


def compared(run, tries: list[judges.Answers], ppo: judges.Answers) -> dict:
    return judges.comparison(bench_of(run), tries, ppo, judges.rated(run, 'validation'))


def said(*texts: str, **scores) -> judges.Answers:
    return answers(*([ord(letter) for letter in text] for text in texts), **scores)


def test_policies_are_compared_on_the_same_prompts(run):
    sft, other = said('a dull plot', 'bad bad bad'), said('a bright plot', 'good story')
    found = compared(run, [sft, other, sft, sft], said('great great', 'good', reward_B=[2, 1]))
    policies = found['policies']
    assert list(policies) == ['sft', 'ppo', 'best_of_4']
    assert policies['sft']['gold_deviations'] == policies['sft']['gold_standard_error'] == 0
    assert policies['ppo']['reward'] == 1.5 and policies['ppo']['vader'] > 0 > policies['sft']['vader']
    # Equal rewards: the first try, so all numbers are the SFT policy's but the divergence, which is a bound.
    assert policies['best_of_4'] == policies['sft'] | {'kl': None, 'kl_bound': math.log(4) - 3 / 4}
    assert found['prompts'] == 2 and found['tokens'] == len('great great') + len('good')
    assert found['gold_scorer']['rows'] == len(judges.rated(run, 'train').texts) > 30
    assert 0 <= found['gold_scorer']['accuracy_gap_1'] <= 1
    assert found['samples'][0].keys() == {'prompt', 'sft', 'sft_gold', 'sft_reward', 'ppo', 'ppo_gold', 'ppo_reward'}


def test_the_standard_error_is_that_of_paired_differences(run):
    sft, ppo = said('good plot', 'bad story', 'dull scene'), said('great film', 'bad story', 'bright scene')
    gold = bench_of(run).gold
    gain_B = (gold.predict(ppo.messages) - gold.predict(sft.messages)) / gold.predict(sft.messages).std()
    row = compared(run, [sft], ppo)['policies']['ppo']
    assert row['gold_deviations'] == pytest.approx(gain_B.mean())
    assert row['gold_standard_error'] == pytest.approx(np.sqrt(np.var(gain_B, ddof=1) / 3))


def test_without_gold_data_there_is_no_gold(run):
    run.config = dataclasses.replace(run.config, gold_data=dataclasses.replace(run.config.gold_data, sources={}))
    found = compared(run, [said('a')], said('b'))
    assert 'gold_scorer' not in found and 'gold' not in found['policies']['ppo']
    assert bench_of(run).gold is None


def test_gold_data_that_is_not_rated_is_refused_in_one_line(run):
    source, = run.config.gold_data.sources.values()
    sources = {'rated': dataclasses.replace(source, fields={})}
    run.config = dataclasses.replace(run.config, gold_data=dataclasses.replace(run.config.gold_data, sources=sources))
    with pytest.raises(UserError, match='source rated has text here, but this stage reads score, text'):
        assert bench_of(run).gold


def test_rated_texts_without_words_are_refused_in_one_line(run):
    source, = run.config.gold_data.sources.values()
    pathlib.Path(source.jsonl).write_text(''.join(f'{{"text": "{mark}", "mean": 1}}\n' for mark in '.!?;:,' * 5))
    with pytest.raises(UserError, match='no gold scorer can be fitted on gold_data .*; give it more texts'):
        assert bench_of(run).gold
