"""How many parameters transformers gives the models of our presets.

    python -m tests.parity.reference.count CONFIGS COUNTS

In: CONFIGS, a JSON file of config.json's by name. Out: COUNTS, a JSON file of whole numbers by name; tied tables count
once, and nothing is allocated. Imports no jax.
"""

import json
import pathlib
import sys

import torch
import transformers


def main(configs: pathlib.Path, counts: pathlib.Path) -> None:
    transformers.utils.logging.set_verbosity_error()
    found = {name: count(config) for name, config in json.loads(configs.read_text()).items()}
    counts.write_text(json.dumps(found))


def count(config: dict) -> int:
    made = transformers.AutoConfig.for_model(**config)
    with torch.device('meta'):
        model = getattr(transformers, config['architectures'][0])(made)
    model.tie_weights()
    return model.num_parameters()


if __name__ == '__main__':
    main(*map(pathlib.Path, sys.argv[1:]))
