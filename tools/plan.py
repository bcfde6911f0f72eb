"""python -m tools.plan --config=FILE[:VARIANT] --pod=NAME [--config.KEY=VALUE] [--json=FILE] [--suggest]

In: a config of one stage or of a pipeline, and the pod it is meant for. No TPU, no data: the TPU compiler alone.
Out: a table for every stage (does it fit, what stays in memory, arithmetic, bytes on the wire, a roofline), and JSON.
Exit code 0: all fits; 1: something does not, and one line says what to change; 2: a mistake in config or flags, or an
error of the compiler's own.
Left out: running anything. Seconds are bounds by the hardware, not measurements.
"""

import os

# Before JAX starts: the TPU compiler without a TPU, beside whatever else has loaded it.
os.environ.update(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
os.environ.update(TPU_ACCELERATOR_TYPE='v5litepod-4', TPU_WORKER_HOSTNAMES='localhost')  # or it complains of none

import json  # noqa: E402  (the environment comes first)
import pathlib  # noqa: E402
import sys  # noqa: E402

from absl import flags  # noqa: E402
import jax  # noqa: E402

from llm.errors import UserError  # noqa: E402
from llm.main import guarded, parse  # noqa: E402
from llm.plan import table  # noqa: E402
from llm.plan.compile import plan_stage  # noqa: E402
from llm.plan.paper import paper_runs  # noqa: E402
from llm.plan.pods import names, pod  # noqa: E402
from llm.plan.suggest import advice, suggestion  # noqa: E402

POD = flags.DEFINE_string('pod', None, f'one of {", ".join(names())}; "2x v5e-256" is two slices')
JSON = flags.DEFINE_string('json', None, 'file that the plan is written to')
SUGGEST = flags.DEFINE_bool('suggest', False, 'where a stage does not fit, try changes; print the cheapest')


def main() -> None:
    config = parse(sys.argv, ('config', 'pod'))
    jax.config.update('jax_enable_compilation_cache', False)  # what it gives back for TPUs cannot be read
    target = pod(POD.value)
    runs = paper_runs(config, target.devices())
    plans, lines = {}, []
    for name, run in runs.items():
        plans[name] = plan = plan_stage(run, target)
        table.show(name, plan, target)
        if not plan.fits:
            prefix = f'config.stages.{name}' if 'stages' in config else 'config'
            how = suggestion(run, plan, target, prefix) if SUGGEST.value else advice(run, plan, target, prefix)
            lines.append(table.does_not_fit(name, plan, target, how))
    if JSON.value:
        write(pathlib.Path(JSON.value), {'pod': target.name, 'chip': target.chip.device_kind,
                                         'stages': {name: plan.as_json() for name, plan in plans.items()}})
    for line in lines:
        print(line, file=sys.stderr)
    if lines:
        sys.exit(1)


def write(path: pathlib.Path, value: dict) -> None:
    try:
        path.write_text(json.dumps(value, indent=1))
    except OSError as error:
        raise UserError(f'--json={path} cannot be written ({error.strerror}); name a file in a folder that is there'
                        ) from None


if __name__ == '__main__':
    sys.exit(guarded(main))
