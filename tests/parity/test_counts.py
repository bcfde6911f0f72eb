"""Every named size has the parameters that transformers gives it, from the config.json that an export would have."""

import json
import os
import subprocess

from configs import sizes
from llm.architecture import ModelConfig
from llm.door import from_dict
from llm.interop import config_json
from tests.configs.test_sizes import COUNTS
from tests.parity import references

pytestmark = references.needed


def test_every_size_has_as_many_parameters_as_transformers_says(tmp_path):
    configs = {}
    for name, head in COUNTS:
        model = from_dict(ModelConfig, getattr(sizes, name)().to_dict())
        configs[f'{name} {head}'] = config_json.encode(model, config_json.family_of(model, head), head)
    (tmp_path / 'configs.json').write_text(json.dumps(configs))
    subprocess.run([os.environ['PARITY_PYTHON'], '-m', 'tests.parity.reference.count', str(tmp_path / 'configs.json'),
                    str(tmp_path / 'counts.json')], check=True)
    counts = json.loads((tmp_path / 'counts.json').read_text())
    assert counts == {f'{name} {head}': count for (name, head), count in COUNTS.items()}
