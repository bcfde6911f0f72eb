"""A plan as a person reads it: tables on the screen, and one line for what does not fit.

In: `StagePlan`s. Out: standard output. Left out: the numbers themselves (`compile.py`), and their JSON.
"""

from typing import Any

from llm import metrics
from llm.plan.compile import ProgramPlan, StagePlan, Work
from llm.plan.pods import Pod


def show(name: str, plan: StagePlan, pod: Pod) -> None:
    """Two tables of a stage: what its programs need, and what they compute and move; a line about its step."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items() if size > 1) or 'one device'
    title = f'{name} on {pod.name} ({plan.devices} devices: {mesh})'
    metrics.table(f'{title}: memory of a device, GiB', [_memory_row(*item) for item in plan.programs.items()])
    resident = ', '.join(f'{what} {size:.2f}' for what, size in plan.resident_gib.items())
    metrics.say(f'{name}  stays in memory: {resident} GiB; peak {plan.peak_gib:.2f} of {plan.limit_gib:.2f} GiB')
    rows = [row for what, program in plan.programs.items() for row in _work_rows(what, program)]
    if rows:
        metrics.table(f'{title}: work of a device in a call', rows)
    if plan.seconds is not None:
        metrics.say(f'{name}  a step: {plan.seconds:.4g} s with overlap, {plan.seconds_without_overlap:.4g} s without; '
                    f'MFU at most {plan.mfu_bound:.1%}; {plan.tokens_per_second:,.0f} tokens/s; '
                    f'{plan.tokens * plan.steps:,} tokens in {plan.hours:.4g} h')


def does_not_fit(name: str, plan: StagePlan, pod: Pod, advice: str) -> str:
    """One line: the program that needs most, what it needs, what there is, what to change."""
    what, worst = plan.worst, plan.programs[plan.worst]
    beside = f' beside {worst.beside_gib:.2f} that stay in memory' if worst.beside_gib else ''
    return (f'{name} does not fit {pod.name}: {what} needs {worst.need_gib:.2f} GiB{beside} and a device has '
            f'{plan.limit_gib:.2f}; {advice}')


def _memory_row(name: str, program: ProgramPlan) -> dict[str, Any]:
    return {'program': name, 'fits': 'yes' if program.fits else 'NO', 'peak': round(program.need_gib, 2),
            'beside it': round(program.beside_gib, 2), 'limit': program.limit_gib, 'host': round(program.host_gib, 2),
            'calls a step': program.calls, 'compile s': round(program.compile_seconds, 1)}


def _work_rows(name: str, program: ProgramPlan) -> list[dict[str, Any]]:
    if program.work is None:
        return []
    return [_work_row(name, program.work), *(_work_row(f'  {part}', work) for part, work in program.parts.items())]


def _work_row(name: str, work: Work) -> dict[str, Any]:
    kinds = {kind: f'{size / 1e9:.3g}' for kind, size in work.wire_bytes.items()}
    between = {'DCN GB': f'{work.dcn_bytes / 1e9:.3g}'} if work.dcn_bytes else {}
    return {'program': name, 'TFLOPs': work.flops / 1e12, 'HBM GB': work.hbm_bytes / 1e9,
            'wire GB': sum(work.wire_bytes.values()) / 1e9, **kinds, **between,
            'seconds': work.seconds, 'without overlap': work.seconds_without_overlap}
