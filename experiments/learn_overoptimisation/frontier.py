"""Reward and gold against KL, of every seed: python experiments/learn_overoptimisation/frontier.py OUT...

In: folders that run.sh has written, one a seed, in the order of the seeds.
Out: a Markdown table of the evaluations; frontier.svg beside this file.
Left out: the runs themselves (run.sh).
"""

import json
import pathlib
import sys

from matplotlib import pyplot as plt

plt.rcParams['svg.hashsalt'] = 'frontier'  # the same file for the same numbers

_COLUMNS = ('kl', 'reward', 'gold_deviations', 'ended', 'distinct_share')


def main() -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    print(f'| seed | run | step | {" | ".join(_COLUMNS)} |\n|---|---|---|{"---|" * len(_COLUMNS)}')
    for seed, out in enumerate(map(pathlib.Path, sys.argv[1:])):
        free, guarded = (evaluations(out / window) for window in ('window0', 'window4'))
        for name, rows in (('free', free), ('guarded', guarded)):
            for row in rows:
                cells = ' | '.join(f'{row[column]:.3f}' for column in _COLUMNS)
                print(f'| {seed} | {name} | {row["step"]} | {cells} |')
        kl = [row['kl'] for row in free]
        for column, style in (('reward', '--'), ('gold_deviations', '-')):
            axes.plot(kl, [row[column] for row in free], style, color=f'C{seed}', label=f'{column}, seed {seed}')
        result = json.loads(next((out / 'window4').glob('ppo-*/result.json')).read_text())
        kept = next(row for row in guarded if row['step'] == result['step'])
        axes.plot(kept['kl'], kept['gold_deviations'], 'o', color=f'C{seed}', label=f'kept by the guard, seed {seed}')
        print(f'| {seed} | guarded | ended by: {result["why"]} |{" |" * len(_COLUMNS)}')
    axes.set_xlabel('KL to the SFT policy, nats an answer')
    axes.set_ylabel("deviations of the SFT policy's answers")
    axes.legend(fontsize=8)
    figure.savefig(pathlib.Path(__file__).with_name('frontier.svg'), metadata={'Date': None})


def evaluations(workdir: pathlib.Path) -> list[dict]:
    """The held-out numbers of the one PPO run of a workdir, in the order of its steps."""
    lines = next(workdir.glob('ppo-*/metrics.jsonl')).read_text().splitlines()
    return [row for row in map(json.loads, lines) if row['kind'] == 'evaluate']


if __name__ == '__main__':
    main()
