"""Models of every family as transformers saves them: imported, they give its logits, gradients and greedy answers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.interop import config_json
from llm.interop.families import FAMILIES
from llm.interop.import_hf import read_model
from llm.rollout.generate import make_generate
from tests.parity import ours, references

every_model = pytest.mark.parametrize('name', references.names('models'))


def batches(name: str) -> list[str]:
    return [batch for batch in references.expected(name) if batch != 'decode']


@references.needed
def test_every_family_has_a_model():
    folders = [references.FOLDER / 'models' / name / 'model' for name in references.names('models')]
    assert {read_model(str(folder), (1, 1, 1))[0].model_type for folder in folders} == set(FAMILIES)


@every_model
def test_outputs_are_those_of_transformers(name):
    for batch in batches(name):
        arrays = references.expected(name)[batch]
        found, value, _ = ours.computed(name, batch)
        assert found.keys() == arrays['out'].keys()
        for key, wanted in arrays['out'].items():
            label = arrays['label'].get(key)
            counted = np.ones(wanted.shape[:2], bool) if label is None or wanted.ndim == 2 else label >= 0
            assert found[key].dtype == jnp.float32 and np.isfinite(found[key]).all()
            np.testing.assert_allclose(found[key][counted], wanted[counted], rtol=0, atol=1e-4,
                                       err_msg=f'{batch} {key}')
        np.testing.assert_allclose(value, arrays['loss'], rtol=0, atol=1e-4)


@every_model
def test_gradients_are_those_of_transformers(name):
    """Of each leaf within 1e-3, and within a thousandth of its largest; some are 0 but for rounding."""
    for batch in batches(name):
        folder = references.FOLDER / 'models' / name / 'gradients' / batch
        _, wanted = read_model(str(folder), mesh=(1, 1, 1))

        def check(path, found, wanted):
            largest = min(1.0, float(jnp.abs(wanted).max()))
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * largest + 1e-6,
                                       err_msg=f'{batch} {jax.tree_util.keystr(path)}')
        jax.tree_util.tree_map_with_path(check, ours.computed(name, batch)[2], wanted)


@every_model
def test_a_config_in_the_words_of_released_models_means_the_same(name):
    folder = references.FOLDER / 'models' / name
    new, old = (json.loads((folder / file).read_text()) for file in ('model/config.json', 'released.json'))
    assert config_json.decode(old) == config_json.decode(new)


@every_model
def test_greedy_answers_with_the_cache_are_those_of_transformers(name):
    decode = references.expected(name).get('decode')
    if decode is None:
        pytest.skip('it does not generate')
    model, params = ours.load(str(references.FOLDER / 'models' / name / 'model'))
    rows, new_tokens = decode['answer'].shape
    generate = make_generate(model, max_new_tokens=new_tokens, temperature=0.0, eos_id=-1, pad_id=0)
    done = jax.jit(generate)(params, jnp.asarray(decode['prompt']), jnp.asarray(decode['length']),
                             jnp.arange(rows), jax.random.key(0))
    answers = [tokens[length:length + new_tokens] for tokens, length in zip(done.tokens_BT, decode['length'])]
    np.testing.assert_array_equal(np.stack(answers), decode['answer'])
