"""The ablations beside the recipe: python experiments/learn_ablations/table.py PARENTS OUT [PARENTS OUT]...

In: for every seed the workdir of its quickstart and the folder that run.sh has written.
Out: Markdown tables: held-out numbers of PPO at step 9 and of the reward stage's chosen step: mean (least to most).
Left out: the runs themselves (run.sh).
"""

import json
import pathlib
import sys
from typing import Any

_STEP = 9
_COLUMNS = ('gold_deviations', 'reward', 'kl', 'ended', 'distinct_share', 'length')
_VARIANTS = ('value_from_sft', 'no_whitening', 'fixed_kl', 'no_eos_penalty', 'ptx')


def main() -> None:
    folders = list(map(pathlib.Path, sys.argv[1:]))
    parents, outs = folders[::2], folders[1::2]
    table('PPO, step 9', _COLUMNS, {
        'recipe': [held_out(parent) for parent in parents],
        **{name: [held_out(out / name) for out in outs] for name in _VARIANTS}})
    table('reward, test pairs more than 1 apart', ('model', 'ridge'), {
        'K = 4': [pairs(parent) for parent in parents], 'pairs': [pairs(out / 'pairs') for out in outs]})


def table(title: str, columns: tuple[str, ...], rows: dict[str, list[dict[str, Any]]]) -> None:
    print(f'\n| {title} | {" | ".join(columns)} |\n|---|{"---|" * len(columns)}')
    for name, seeds in rows.items():
        values = [[seed[column] for seed in seeds] for column in columns]
        cells = [f'{sum(of) / len(of):.3f} ({min(of):.3f} to {max(of):.3f})' for of in values]
        print(f'| {name} | {" | ".join(cells)} |')


def held_out(workdir: pathlib.Path) -> dict[str, Any]:
    """PPO's evaluation at that step; of a run that ended before it, its last one."""
    lines = next(workdir.glob('ppo-*/metrics.jsonl')).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row['kind'] == 'evaluate' and row['step'] <= _STEP]
    if rows[-1]['step'] < _STEP:
        print(f'{workdir} ended at step {rows[-1]["step"]}')
    return rows[-1]


def pairs(workdir: pathlib.Path) -> dict[str, Any]:
    return json.loads(next(workdir.glob('reward-*/figures.json')).read_text())['pairs']['1']


if __name__ == '__main__':
    main()
