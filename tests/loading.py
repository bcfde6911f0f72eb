"""`llm.main`, with a line in $ROWS_LOG for each training batch: the numbers of the rows that this process loads."""

import json
import os
import sys

from llm import main
from llm.data.rows import PackedRows

_load = PackedRows.rows


def rows(self, indices):
    if '-train-' in self._folder.name:
        with open(f'{os.environ["ROWS_LOG"]}.{main.PROCESS.value or 0}', 'a', encoding='utf-8') as log:
            log.write(json.dumps(indices.tolist()) + '\n')
    return _load(self, indices)


PackedRows.rows = rows
sys.exit(main.guarded(lambda: main.main(sys.argv)))
