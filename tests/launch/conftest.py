"""Systems to launch on that only note what they were told."""

import os
import stat
import subprocess

import pytest

# Notes its words, one call a file; on a TPU's host it is also the other end of ssh.
RECORDER = '''#!/bin/bash
number=$(ls "$RECORDS" | wc -l)
printf '%s\\0' "${0##*/}" "$@" > "$RECORDS/$(printf %04d "$number")-$$"  # slices are started at once
case " $* " in *' describe '*) echo "$STATE";; esac
for word in "$@"; do
    case "$word" in --command=*) cd "$REMOTE" && exec bash -c "${word#--command=}";; esac
done
exit "${CODE:-0}"
'''


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A PATH on which every program that a launch calls notes its words; -> a function that runs and reads them."""
    programs, records, remote = (tmp_path / name for name in ('bin', 'records', 'remote'))
    places = [programs / name for name in ('gcloud', 'kubectl', 'xpk', 'srun', 'scontrol', 'git', 'tar', 'python')]
    for path in (*places, remote / 'quartet/.venv/bin/python'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORDER)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (remote / 'quartet/tools').mkdir()
    (remote / 'quartet/tools/venv.sh').touch()
    records.mkdir()
    for key, value in {'PATH': f'{programs}:{os.environ["PATH"]}', 'RECORDS': records, 'REMOTE': remote,
                       'STATE': 'ACTIVE', 'SLURM_JOB_ID': '77'}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.chdir(tmp_path)

    def calls(argv: list[str], *, stdin: str = '', **variables: str) -> tuple[int, list[list[str]]]:
        for path in records.iterdir():
            path.unlink()
        code = subprocess.run(argv, input=stdin.encode(), env={**os.environ, **variables}, timeout=60,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        assert not list(tmp_path.rglob('owned*'))
        return code, [path.read_bytes().decode().split('\0')[:-1] for path in sorted(records.iterdir())]
    return calls
