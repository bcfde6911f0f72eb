"""python -m tools.lineage FOLDER[@STEP]: the chain from a checkpoint back to the raw data, a line an ancestor.

In: a run's folder. Out: lines on standard output. Left out: loading any weights.
"""

import argparse
import sys

from etils import epath

from llm.main import guarded
from llm.manifest import lineage_lines, parse_reference
from llm.resolve import chosen_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help="a run's folder, e.g. runs/quickstart/ppo-1234abcd@40")
    reference = parser.parse_args().checkpoint
    path, step = parse_reference(reference, 'checkpoint')
    folder = epath.Path(path)
    step = chosen_step(folder, f'checkpoint={reference}') if step is None else step
    print('\n'.join(lineage_lines(folder / 'checkpoints', step)))


if __name__ == '__main__':
    sys.exit(guarded(main))
