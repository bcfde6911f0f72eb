"""Folders of finished runs, made by hand: what a pipeline leaves behind, without running one."""

import json
import math
import pathlib
from typing import Any

from llm.manifest import Manifest, write

HOSTILE = '<script>alert(1)</script> "quoted" & <img src=x onerror=alert(1)> \x1b[0m ' + 'w' * 90
NAMES = ('pretrain', 'sft', 'reward', 'ppo')
STEPS = {'pretrain': 500, 'sft': 300, 'reward': 300, 'ppo': 40}
PARENTS = {'pretrain': {}, 'sft': {'init_from': 'pretrain'}, 'reward': {'init_from': 'sft'},
           'ppo': {'init_from': 'sft', 'reward_from': 'reward'}}
METRICS = {'pretrain': ('bits_per_byte', 3.7, 1.98), 'sft': ('next_token', 5.69, 4.41),
           'reward': ('k_wise', .72, .54), 'ppo': ('gold', .31, .58)}
SOURCES = {'pretrain': {'bible': 1.0, 'shakespeare': 1.0, 'reviews': .3},
           'sft': {'write': 1.0, 'judge': 1.0, 'answer': .5}, 'reward': {'rank': 1.0}, 'ppo': {'begin': 1.0}}
SAMPLES = {
    'pretrain': [{'prompt': 'In the beginning', 'continuation': ' was the word,\nand the king said unto him'}],
    'sft': [{'prompt': 'Write a film review.', 'answer': 'a warm, funny film <b>that</b> never ends'},
            {'prompt': HOSTILE, 'answer': HOSTILE}],
    'reward': [{'score': 2.4 - n / 2, 'answer': f'a film of worth {9 - n}'} for n in range(9)],
    'ppo': [{'prompt': 'Write a film review.', 'sft': 'dull', 'sft_reward': -.5, 'ppo': '', 'ppo_reward': 1.5}]}
FIGURES: dict[str, dict[str, Any]] = {
    'pretrain': {'split': 'test', 'step': 500, 'context': 'of each token: its window', 'bits_per_byte': {
        name: {'bytes': size, 'gzip': gzip, 'model': model, 'kn_byte_trigram': trigram,
               'kn_token_trigram': None if name == 'reviews' else 1.83}
        for name, size, model, gzip, trigram in (
            ('bible/Acts', 120_344, 1.71, 2.66, 2.7), ('bible/Job', 120_344, 1.83, 2.9, 2.76),
            ('shakespeare/julius_caesar', 120_344, 2.2, 2.83, 2.81), ('bible', 240_688, 1.77, 2.7, 2.73),
            ('reviews', 80_000, 2.41, 3.1, 2.9), ('works', 481_376, 1.98, 2.81, 2.8))}},
    'sft': {
        'split': 'test', 'step': 300,
        'answer_nats': {'write': {'model': 4.6, 'parent': 5.7}, 'judge': {'model': .55, 'parent': 1.65}},
        'choices': {'clear': {'rows': 902, 'labels': ['negative', 'positive'], 'model': .764, 'tfidf_logistic': .82,
                              'parent': .51}}},
    'reward': {
        'split': 'test', 'step': 300, 'rows': 1400,
        'pairs': {gap: dict(zip(('pairs', 'model', 'ridge', 'lexicon', 'raters'), values)) for gap, values in (
            ('0.5', (702_031, .741, .79, .65, .8)), ('1', (471_002, .806, .847, .677, .86)),
            ('2', (181_006, .86, .894, .693, .94)))},
        'calibration': {'ece': .061, 'ece_after': .012, 'temperature': 1.38, 'bins': [
            {'low': .5 + n / 20, 'high': .55 + n / 20, 'count': 0 if n == 9 else 100,
             'confidence': None if n == 9 else .525 + n / 20, 'accuracy': None if n == 9 else .52 + n / 25,
             'count_after': 90, 'confidence_after': .515 + n / 21, 'accuracy_after': .52 + n / 21}
            for n in range(10)]}},
    'ppo': {
        'split': 'test', 'step': 32, 'prompts': 256,
        'gold_scorer': {'rows': 2600, 'pairs': 9000, 'accuracy_gap_1': .81},
        'policies': {
            'sft': {'gold': .31, 'gold_deviations': 0.0, 'gold_standard_error': 0.0, 'vader': .2, 'reward': 0.0,
                    'kl': 0.0, 'distinct_2': .81, 'ended': .97, 'length': 21.2},
            'ppo': {'gold': .58, 'gold_deviations': .61, 'gold_standard_error': .045, 'vader': .44, 'reward': 1.4,
                    'kl': 7.9, 'distinct_2': .7, 'ended': .98, 'length': 24.5},
            'best_of_4': {'gold': .47, 'gold_deviations': .36, 'gold_standard_error': .05, 'vader': .39, 'reward': .98,
                          'kl': None, 'kl_bound': .64, 'distinct_2': .8, 'ended': .98, 'length': 22.0}},
        'samples': [{'prompt': 'Write a film review that begins with "the plot".',
                     'sft': 'the plot is thin and the acting is worse', 'sft_gold': -.4, 'sft_reward': -.91,
                     'ppo': 'the plot is a delight and the acting is a joy', 'ppo_gold': .9, 'ppo_reward': 1.71}] * 3}}
DATA = {
    'data.bible': {
        'train': {'documents': 64, 'kept': 62, 'dropped': {'duplicate': 1, 'overlap_passages': 17}, 'records': 62,
                  'chars': 4_500_000, 'kept_chars': 4_400_000, 'rows': 9120, 'tokens': 1_167_360,
                  'examples': {'duplicate': [HOSTILE]}},
        'validation': {'documents': 2, 'kept': 2, 'dropped': {}, 'examples': {}, 'rows': 210, 'tokens': 26_880}},
    'ptx_data.bible': {'train': {'documents': 5, 'kept': 5, 'dropped': {}, 'examples': {}}},
    'data.reviews': {
        'train': {'documents': 8871, 'kept': 8702, 'dropped': {'too_short': 12, 'language': 4, 'duplicate': 153},
                  'examples': {'too_short': ['bad', 'ok']}, 'rows': 2100, 'tokens': 240_000}}}


def write_runs(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Makes the folders of four finished stages, and returns them by name."""
    folders = {name: workdir / f'{name}-{index}{index}abcdef' for index, name in enumerate(NAMES)}
    for name, folder in folders.items():
        (folder / 'checkpoints').mkdir(parents=True)
        write(folder / 'checkpoints', manifest(name, folders))
        files = {'identity.json': identity(name, folders), 'result.json': result(name), 'figures.json': FIGURES[name],
                 'data.json': DATA if name == 'pretrain' else {}}
        for file, value in files.items():
            (folder / file).write_text(json.dumps(value))
        for file, lines in (('metrics.jsonl', rows(name)), ('samples.jsonl', SAMPLES[name])):
            (folder / file).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folders


def chosen(name: str) -> int:
    return 32 if name == 'ppo' else STEPS[name]


def identity(name: str, folders: dict[str, pathlib.Path]) -> dict[str, Any]:
    config = {'stage': name, 'seed': 0, 'stop_step': STEPS[name], 'optim': {'learning_rate': 3e-3},
              'data': {'sources': {source: {'tfds': source, 'jsonl': None, 'weight': weight}
                                   for source, weight in SOURCES[name].items()}}}
    return {'name': name, 'identity': {}, 'config': config | ({'kl_budget': 10.0} if name == 'ppo' else {}),
            'parents': {key: f'{folders[parent]}@{chosen(parent)}' for key, parent in PARENTS[name].items()}}


def result(name: str) -> dict[str, Any]:
    metric, before, after = METRICS[name]
    early = 'over-optimised: gold 0.58 -> 0.50 while reward 1.40 -> 1.90 over steps 8..40'
    phases = {'setup': 3.1, 'data': 8.0, 'compile': 31.0, 'train': 180.5, 'evaluate': 14.0, 'save': 2.2, 'samples': 4.1}
    return {'stage': name, 'step': chosen(name), 'last_step': STEPS[name], 'metric': metric, 'before': before,
            'after': after, 'why': early if name == 'ppo' else 'stop_step', 'seconds': sum(phases.values()),
            'code': '0' * 64, 'phases': phases}


def manifest(name: str, folders: dict[str, pathlib.Path]) -> Manifest:
    parents = {key: {'path': str(folders[parent] / 'checkpoints'), 'stage': parent, 'identity': '1' * 64,
                     'step': chosen(parent), 'fingerprint': f'{parent:a<64}'} for key, parent in PARENTS[name].items()}
    return Manifest(
        stage=name, identity=f'{name:b<64}', model={'num_layers': 4, 'model_dim': 192, 'vocab_size': 4096},
        tokenizer={'sha256': 'c' * 64}, heads=['token'], reward=None, objective='', data={}, seed=0, mesh={'data': 1},
        packages={'jax': '0.10.2', 'flax': '0.12.8'}, git_commit='d' * 40, parents=parents, step=chosen(name),
        leaves={'params': {'embed/tokens': {'shape': [4096, 192]}, 'layers/mlp/up/w': {'shape': [4, 192, 2048]}}},
        time='2026-01-01T00:00:00+00:00')


def rows(name: str) -> list[dict[str, Any]]:
    """Rows of training, and five evaluations."""
    last, made = STEPS[name], []
    for step in range(last + 1):
        along = step / last
        loss = 3 + 3 * math.exp(-4 * along) + .1 * math.sin(step)
        if step % 5 == 0 and step:
            made.append({'step': step, 'kind': 'train', 'tokens': step * 2048, 'next_token': loss, 'k_wise': loss / 6,
                         'reward': 2 * along + .1 * math.sin(step), 'kl': 14 * along})
        if step % (last // 5) == 0:
            held = {f'next_token/{source}': loss + .1 * n for n, source in enumerate(SOURCES[name])}
            held |= {f'bits_per_byte/{source}': loss / 2 + .1 * n for n, source in enumerate(SOURCES[name])}
            made.append({'step': step, 'kind': 'evaluate', 'next_token': loss + .05, **held,
                         'k_wise': 'nan' if step == 0 else loss / 6, 'accuracy_gap_1': .5 + .3 * along,
                         'accuracy_gap_2': .5 + .36 * along, 'reward': 1.9 * along, 'kl': 14 * along ** 1.5,
                         'gold_deviations': 2.4 * along * (1.15 - along), 'length': 21 + 4 * along,
                         'ended': .96 + .02 * along, 'distinct_share': 1 - .15 * along})
    return made
