"""Measures figures 2 and 3 on the real `:tiny` recipes: other meshes, micro-batches, SIGKILL in every stage.

In: a folder for the runs. Out: two tables in Markdown, for the README beside this file.
Left out: the bounds; tests/stages/ holds them, on a smaller config.
"""

import argparse
import pathlib
import shutil

import jax

from configs import quickstart
from llm.main import enable_compilation_cache
from tests import tiny
from tests.stages import exactness

STEPS, EVERY = 20, 8  # every stage; PPO's are iterations
ALONE, WHOLE = (1, 1, 1), {'pretrain': (2, 2, 2), 'sft': (8, 1, 1), 'reward': (2, 2, 2), 'ppo': (2, 2, 2)}
VARIANTS = {'8x1x1': ((8, 1, 1), 1), '2x2x2': ((2, 2, 2), 1), '1x1x1, 4 micro-batches': (ALONE, 4)}


def recipes(**changes):
    """The four stages on one device, saved and evaluated between the ends."""
    config = quickstart.get_config('tiny')
    for stage in config.stages.values():
        exactness.execute_on(stage, ALONE)
        stage.update(stop_step=STEPS, eval_every_steps=EVERY, save_every_steps=EVERY, **changes)
    return config


def meshes(name: str, workdir: pathlib.Path) -> dict[str, str]:
    """Largest relative difference of a training loss from one device's, by variant."""
    tape = []
    config = recipes()
    config.stages[name].dropout = 0.0  # micro-batches draw their own
    with exactness.recorded(tape):
        expected = exactness.run_again(name, config, workdir, mesh=ALONE)
    row = {}
    for label, (mesh, micro_batches) in VARIANTS.items():
        with exactness.replayed(tape):
            got = exactness.run_again(name, config, workdir, mesh=mesh, micro_batches=micro_batches)
        row[label] = f'{exactness.difference(got, expected, "loss"):.1e}'
    return row


def resumed(name: str, whole: pathlib.Path, killed: pathlib.Path, copy: pathlib.Path) -> dict[str, str]:
    """What a kill changed: on the same mesh, and of the losses on another one."""
    written = exactness.rows(exactness.folder_of(name, copy))[-1]['step']
    config = exactness.up_to(name, recipes())
    exactness.execute_on(config.stages[name], WHOLE[name])
    tiny.run(config, copy)
    ends = [exactness.folder_of(name, workdir) for workdir in (whole, killed, copy)]
    streams = [exactness.rows(end) for end in ends]
    leaves = [exactness.last_manifest(end).leaves for end in ends]
    return {'killed after step': str(written), 'rows equal': str(streams[0] == streams[1]),
            'fingerprints equal': str(leaves[0] == leaves[1]), 'other mesh': 'x'.join(map(str, WHOLE[name])),
            'loss there': f'{exactness.difference(streams[2], streams[0], "loss"):.1e}'}


def table(rows: dict[str, dict[str, str]]) -> None:
    columns = list(next(iter(rows.values())))
    print('| stage | ' + ' | '.join(columns) + ' |\n' + '|---' * (len(columns) + 1) + '|')
    for name, row in rows.items():
        print(f'| {name} | ' + ' | '.join(row[column] for column in columns) + ' |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', type=pathlib.Path)
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True)
    jax.config.update('jax_num_cpu_devices', 8)
    enable_compilation_cache()
    whole, killed = folder / 'whole', folder / 'killed'
    tiny.run(recipes(), whole)
    for name in exactness.NAMES:
        exactness.drive(recipes(), killed, kill_in=name, beyond=EVERY)
        shutil.copytree(killed, folder / name)
    exactness.drive(recipes(), killed)
    after_kills = {name: resumed(name, whole, killed, folder / name) for name in exactness.NAMES}
    table({name: meshes(name, shutil.copytree(whole, folder / f'meshes-{name}')) for name in exactness.NAMES})
    print()
    table(after_kills)


if __name__ == '__main__':
    main()
