"""python -m tools.report WORKDIR: makes report.html again, of the newest run of each stage in that folder.

In: the workdir of a pipeline, finished or not. Out: WORKDIR/report.html, and its path on standard output.
Left out: training, measuring.
"""

import argparse
import sys

from configs import base
from llm import report
from llm.main import guarded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('workdir', help='the folder of the runs, e.g. runs/quickstart')
    workdir = parser.parse_args().workdir
    print(report.write(workdir, report.newest(workdir), base.defaults()))


if __name__ == '__main__':
    sys.exit(guarded(main))
