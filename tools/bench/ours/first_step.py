"""The first training step from the start of a process: `python -m llm.main` on a model and chats that are there.

In: a job of stage sft; `cold`: with an empty compilation cache, instead of that of the run before.
Out: seconds until the first row of metrics says that a step is done.
Left out: what comes after it; the process is ended.
"""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
from typing import Any

from ml_collections import ConfigDict

from configs import base
from tools.bench.ours.data import documents
from tools.bench.ours.runs import stage
from tools.bench.serve import serve, Work
from tools.faults.job import command, folder_of, write_config

_POLL_SECONDS, _MOST_SECONDS = 0.02, 600
_TEXT_BYTES, _CHAT_WORDS = 1_000_000, 40


def make(job: dict[str, Any]) -> Work:
    """The parent is pretrained for a step before anything is measured."""
    folder = tempfile.TemporaryDirectory(prefix='bench-')
    root = pathlib.Path(folder.name)
    source = write_chats(root / 'chats.jsonl', job['seed'])
    parent = root / 'parent'
    config = stage('pretrain', job)
    config.update(batch_size=2, seq_len=16, eval_rows=2, stop_step=1, save_every_steps=1)
    config.data = base.data(texts=base.source(jsonl=str(root / 'texts.jsonl')))
    quiet(config)
    write_config(config, parent)
    cache = root / 'xla'
    subprocess.run(command(parent), env=environment(cache), check=True)

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder.name) as name:  # which keeps the folder
            workdir = pathlib.Path(name)
            config = stage('sft', job)
            config.update_from_flattened_dict(job['config'])
            config.update(init_from=f'{folder_of("pretrain", parent)}@1', log_every_steps=1, stop_step=1000)
            config.data = base.data(chats=source)
            quiet(config)
            write_config(config, workdir)
            empty = {'cold': workdir / 'xla'} if job.get('cold') else {}
            return {'s': first_row(workdir, empty.get('cold', cache))}
    return Work(turn)


def first_row(workdir: pathlib.Path, cache: pathlib.Path) -> float:
    """Seconds from the start of the run in that folder to its first training row."""
    began = time.time()
    with ((workdir / 'errors').open('w') as errors,
          subprocess.Popen(command(workdir), env=environment(cache), stdout=errors, stderr=errors) as process):
        try:
            while process.poll() is None and time.time() - began < _MOST_SECONDS:
                for row in rows(workdir):
                    if row['kind'] == 'train':
                        return row['time']['unix_seconds'] - began
                time.sleep(_POLL_SECONDS)
        finally:
            process.send_signal(signal.SIGKILL)
    said = (workdir / 'errors').read_text().splitlines() or ['nothing was said']
    raise RuntimeError(f'no step was taken in {time.time() - began:.0f} s: {said[-1]}')


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The whole rows that the run has written so far."""
    return [json.loads(line) for path in workdir.glob('sft-*/metrics.jsonl')
            for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]


def quiet(config: ConfigDict) -> None:
    """Leaves out what is no step: figures and samples."""
    config.figures.rows = 0
    config.data.clean = {'min_chars': 1}  # generated words are no language


def environment(cache: pathlib.Path) -> dict[str, str]:
    return os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}


def write_chats(path: pathlib.Path, seed: int) -> ConfigDict:
    """Texts to pretrain on, and chats cut out of them."""
    texts = documents(_TEXT_BYTES, seed)
    (path.parent / 'texts.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    with path.open('w') as file:
        for text in texts:
            said = text.split()[:_CHAT_WORDS]
            file.write(json.dumps({'messages': [{'role': 'user', 'content': said[0]},
                                                {'role': 'assistant', 'content': ' '.join(said[1:])}]}) + '\n')
    return base.source(jsonl=str(path))


if __name__ == '__main__':
    serve(make, ('jax', 'jaxlib', 'orbax-checkpoint'))
