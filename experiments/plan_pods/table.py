"""python -m experiments.plan_pods.table FOLDER: the plans of that folder as one markdown table, a line a program.

MFU, tokens a second and hours are those of the whole stage, and stand on its last line.
"""

import json
import pathlib
import sys

COLUMNS = ('row', 'stage', 'program', 'fits', 'peak GiB', 'beside it', 'limit', 'TFLOPs', 'wire GB', 'DCN GB',
           'seconds', 'without overlap', 'MFU at most', 'tokens/s', 'hours', 'compile s')


def main(folder: pathlib.Path) -> None:
    print(f'| {" | ".join(COLUMNS)} |\n|{"---|" * len(COLUMNS)}')
    for path in sorted(folder.glob('*.json'), key=lambda path: path.stat().st_mtime):
        for stage, plan in json.loads(path.read_text())['stages'].items():
            last = list(plan['programs'])[-1]
            for program, found in plan['programs'].items():
                cells = of_program(found, of_stage(plan) if program == last else [''] * 3)
                print(f'| {" | ".join((path.stem, stage, program, *cells))} |')


def of_stage(plan: dict) -> list[str]:
    if plan['seconds'] is None:
        return [''] * 3
    return [f'{plan["mfu_bound"]:.1%}', f'{plan["tokens_per_second"]:,.0f}', f'{plan["hours"]:,.1f}']


def of_program(program: dict, stage: list[str]) -> list[str]:
    need = [f'{program[key]:.2f}' for key in ('need_gib', 'beside_gib', 'limit_gib')]
    work = program['work']
    done = [f'{work["flops"] / 1e12:.1f}', f'{sum(work["wire_bytes"].values()) / 1e9:.1f}',
            f'{work["dcn_bytes"] / 1e9:.1f}', f'{work["seconds"]:.3f}',
            f'{work["seconds_without_overlap"]:.3f}'] if work else [''] * 5
    return ['yes' if program['fits'] else 'NO', *need, *done, *stage, f'{program["compile_seconds"]:.0f}']


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]))
