"""Jobs and the words that launch them, for every target."""

from tools.targets.job import Job

CONFIG = ['--config=configs/quickstart.py:tiny', '--workdir=/runs/x']
WORDS = {
    'tpu': ['tpu', '--pod=v5p-128', '--zone=us-east5-a'],
    'gke': ['gke', '--pod=2x v5e-256', '--image=registry/image:1', '--claim=runs'],
    'xpk': ['xpk', '--pod=v6e-256', '--zone=us-east5-a', '--cluster=mine', '--image=registry/image:1'],
    'slurm': ['slurm', '--nodes=4', '--time_limit=12:00:00', '--partition=long'],
    'local': ['--local=2'],
}


def job(config: str = 'c.py', workdir: str = '/w', *values: str) -> Job:
    return Job(name='mine', config=config, workdir=workdir,
               overrides=tuple(f'--config.key{number}={value}' for number, value in enumerate(values)))
