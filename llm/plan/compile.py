"""Compiles a stage's programs for a pod and says of each what it needs, computes, moves, and how fast it can be.

In: a `Run` on paper, its programs, a `Pod`. Out: `StagePlan`, plain numbers.
Left out: how they are shown (`table.py`), what to do where a stage does not fit (`suggest.py`).

A roofline: every number is what the hardware allows, not what will be measured. Seconds with overlap are those of the
busiest of arithmetic, memory and wires; without, arithmetic or memory waits for the wires. The bound of MFU counts
attention as the HLO is counted, without the masked half of the scores, so that it is one; what a run reports is in
PaLM's convention, with all of them (`train_flops_per_token`), and may be above it.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from llm.chips import Chip, mfu
from llm.errors import UserError
from llm.pipeline import STAGES
from llm.plan import hlo
from llm.plan.pods import Pod
from llm.programs import Program
from llm.run import Run

GIB = 2**30
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': GIB, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one device, in one call; `seconds` is a bound."""

    flops: float
    kernel_flops: float  # of these, in attention kernels
    hbm_bytes: float  # an estimate
    wire_bytes: dict[str, float]  # by kind of collective
    dcn_bytes: float  # between slices
    seconds: float  # with overlap
    seconds_without_overlap: float


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """One compiled program; where the compiler refused it, only need and limit are known."""

    fits: bool  # beside what stays in memory
    need_gib: float  # of itself, its arguments included: peak HBM
    beside_gib: float  # of what stays in memory and is not among its arguments
    limit_gib: float
    host_gib: float  # of the host's memory, a device
    calls: int  # in a step
    tokens: int  # in a call, of all devices
    causal_flops: float  # that the models need in a call, of all devices
    compile_seconds: float
    work: Work | None = None
    parts: dict[str, Work] = dataclasses.field(default_factory=dict)  # of a rollout: prefill and decode


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A step of a stage."""

    stage: str
    devices: int
    mesh: dict[str, int]
    fits: bool
    peak_gib: float  # of a device, over the whole step
    limit_gib: float
    resident_gib: dict[str, float]  # of a device, from program to program
    programs: dict[str, ProgramPlan]
    tokens: int  # of a step
    steps: int
    seconds: float | None = None  # of a step, with overlap
    seconds_without_overlap: float | None = None
    mfu_bound: float | None = None  # with causal attention
    tokens_per_second: float | None = None
    hours: float | None = None  # for all steps

    @property
    def worst(self) -> str:
        """Of the programs that do not fit, the one that needs most."""
        return max((name for name, program in self.programs.items() if not program.fits),
                   key=lambda name: self.programs[name].need_gib + self.programs[name].beside_gib)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plan_stage(run: Run, pod: Pod) -> StagePlan:
    """Compiles every program of the stage, one after the other."""
    made = STAGES[run.config.stage].programs(run)
    resident = {name: bytes_a_device(tree) / GIB for name, tree in made.resident.items()}
    plans = {}
    for name, program in made.programs.items():
        beside = sum(size for what, size in resident.items() if what not in program.holds)
        plans[name] = compile_program(program, run.mesh, pod, beside_gib=beside)
    fits = all(plan.fits for plan in plans.values())
    whole = StagePlan(
        stage=run.config.stage, devices=run.mesh.size, mesh=dict(run.mesh.shape), fits=fits,
        peak_gib=max(plan.need_gib + plan.beside_gib for plan in plans.values()), limit_gib=pod.chip.hbm_gib,
        resident_gib=resident, programs=plans, tokens=made.tokens, steps=run.config.stop_step)
    return _timed(whole, pod.chip) if all(plan.work for plan in plans.values()) else whole


def compile_program(program: Program, mesh: jax.sharding.Mesh, pod: Pod, *, beside_gib: float = 0.0) -> ProgramPlan:
    """One program, compiled; the compiler itself says where it does not fit."""
    began, chip = time.monotonic(), pod.chip
    same = dict(beside_gib=beside_gib, calls=program.calls, tokens=program.tokens,
                causal_flops=program.causal_flops)
    with jax.set_mesh(mesh):
        lowered = program.jitted.lower(*program.args)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            need, limit = exceeded(str(error))
            return ProgramPlan(fits=False, need_gib=need, limit_gib=limit, host_gib=0.0,
                               compile_seconds=time.monotonic() - began, **same)
    seconds, memory = time.monotonic() - began, compiled.memory_analysis()
    need = memory.peak_memory_in_bytes / GIB
    prefill, decode = hlo.count(compiled.as_text(), most_trips=program.most_trips, slices=pod.slices)
    parts = {'prefill': work(prefill, chip), 'decode': work(decode, chip)} if program.most_trips else {}
    host = memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes
    return ProgramPlan(fits=need + beside_gib <= chip.hbm_gib, need_gib=need, limit_gib=chip.hbm_gib,
                       host_gib=host / GIB, compile_seconds=seconds, work=work(prefill + decode, chip), parts=parts,
                       **same)


def work(counts: hlo.Counts, chip: Chip) -> Work:
    """What was counted, with its roofline."""
    on_device = max(counts.flops / chip.flops_per_second, counts.hbm_bytes / chip.hbm_bytes_per_second)
    on_wires = sum(counts.wire_bytes.values()) / chip.ici_bytes_per_second
    on_wires += counts.dcn_bytes / chip.dcn_bytes_per_second
    return Work(**dataclasses.asdict(counts), seconds=max(on_device, on_wires),
                seconds_without_overlap=on_device + on_wires)


def exceeded(message: str) -> tuple[float, float]:
    """(need, limit) in GiB from the compiler's refusal; whatever else it says raises UserError."""
    found = re.search(r'\(([\d.]+)([KMGT]?)\) exceeds[^(]*\(([\d.]+)([KMGT]?)\)', message) or re.search(
        r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', message)
    if 'RESOURCE_EXHAUSTED' not in message or not found:
        raise UserError(f'the TPU compiler failed: {" ".join(message.split())}; this says nothing of what fits: change '
                        f'the config or the pod, or use another libtpu')
    need, need_unit, limit, limit_unit = found.groups()
    return float(need) * _UNITS[need_unit] / GIB, float(limit) * _UNITS[limit_unit] / GIB


def bytes_a_device(tree: Any) -> int:
    """Of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _timed(plan: StagePlan, chip: Chip) -> StagePlan:
    programs = plan.programs.values()
    seconds, apart = (sum(program.calls * getattr(program.work, key) for program in programs)
                      for key in ('seconds', 'seconds_without_overlap'))
    arithmetic = sum(program.calls * program.causal_flops for program in programs)
    return dataclasses.replace(
        plan, seconds=seconds, seconds_without_overlap=apart, tokens_per_second=plan.tokens / seconds,
        mfu_bound=mfu(1 / seconds, arithmetic, plan.devices * chip.flops_per_second),
        hours=plan.steps * seconds / 3600)
