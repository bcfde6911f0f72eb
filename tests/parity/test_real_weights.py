"""Weights that people use: MiniLM's sentence embeddings, SmolLM2's answer, by our models and our tokenizers."""

import json
import pathlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.data import converted, foreign
from llm.data.tokenizer import Tokenizer
from llm.interop import export_hf, import_hf
from llm.rollout.generate import make_generate
from tests.parity import ours, references

REAL = references.FOLDER / 'real'
SENTENCES = ('That is a happy person', 'That is a happy dog', 'That is a very happy person', 'Today is a sunny day')
QUESTION = [{'role': 'user', 'content': 'What is the capital of France?'}]
STRINGS = json.loads((pathlib.Path(__file__).parents[1] / 'data/hard_strings.json').read_text())
pytestmark = references.needed


def test_minilm_gives_the_published_cosines():
    """Those of its model card: the mean over tokens, cosines with the first sentence."""
    tokenizer = Tokenizer.from_files(foreign.gather(epath.Path(REAL / 'minilm')), 'minilm')
    rows = [tokenizer.encode_document(text)[0] for text in SENTENCES]
    mask_BT = np.array([[1] * len(row) + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    tokens_BT = np.array([row + [0] * (mask_BT.shape[1] - len(row)) for row in rows])
    model, params = ours.load(str(REAL / 'minilm'))
    batch = {'input_ids': tokens_BT, 'attention_mask': mask_BT}
    x_BTD = jax.jit(lambda params: ours.outputs(model, params, batch, ('last_hidden_state',)))(params)[
        'last_hidden_state']
    with np.load(REAL / 'minilm.npz') as theirs:
        np.testing.assert_array_equal(tokens_BT, theirs['ids'])
        np.testing.assert_allclose(x_BTD[mask_BT == 1], theirs['hidden'][mask_BT == 1], rtol=0, atol=1e-4)
    mean_BD = np.asarray((x_BTD * mask_BT[..., None]).sum(1))
    mean_BD = mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True)
    assert mean_BD[1:] @ mean_BD[0] == pytest.approx([0.695, 0.943, 0.257], abs=5e-4)


@pytest.fixture(scope='module')
def gguf() -> pathlib.Path:
    file, = (REAL / 'smollm2').glob('*.gguf')
    return file


def answer(source: str, tokenizer: Tokenizer) -> str:
    """Greedy, with the cache."""
    model, params = ours.load(source)
    prompt = tokenizer.encode_prompt(QUESTION)
    generate = make_generate(model, max_new_tokens=16, temperature=0.0, eos_id=tokenizer.special_ids['eos'],
                             pad_id=tokenizer.special_ids['pad'])
    done = jax.jit(generate)(params, jnp.array([prompt]), jnp.array([len(prompt)]), jnp.arange(1), jax.random.key(0))
    return tokenizer.decode(done.tokens_BT[0, len(prompt):int(done.length_B[0])])


def test_smollm2_tokens_are_those_of_transformers(gguf):
    tokenizer = tokenizer_of(gguf)
    expected = json.loads((REAL / 'smollm2.json').read_text())
    for text, ids in zip(STRINGS, expected['ids'], strict=True):
        assert tokenizer.encode(text) == ids, repr(text)
    for chat, prompt, whole in zip(expected['messages'], expected['prompts'], expected['chats'], strict=True):
        assert tokenizer.encode_prompt(chat) == prompt
        coded = tokenizer.encode_chat(chat)[0]
        assert coded == whole[:len(coded)] and tokenizer.decode(whole[len(coded):]).strip() == ''


def test_smollm2_answers_and_again_after_a_round_trip(gguf, tmp_path):
    assert answer(str(gguf), tokenizer_of(gguf)) == 'The capital of France is Paris.'
    model, params = ours.load(str(gguf))
    with np.load(REAL / 'smollm2.npz') as theirs:
        batch = {'input_ids': theirs['prompt'][None]}
        logits = jax.jit(lambda params: ours.outputs(model, params, batch, ('logits',)))(params)['logits']
        np.testing.assert_allclose(logits[0], theirs['logits'], rtol=0, atol=1e-3)
    ours.load.cache_clear()
    run = import_hf.import_model(str(gguf), str(tmp_path), mesh=(1, 1, 1), say=lambda line: None,
                                 progress=lambda what, done, total: None)
    folder = export_hf.export(str(run), str(tmp_path / 'exported'), max_shard_gib=0.25, say=lambda line: None)
    assert len(list(folder.glob('*.safetensors'))) > 1
    tokenizer = Tokenizer.from_files(foreign.gather(epath.Path(folder)), 'exported')
    assert answer(str(folder), tokenizer) == 'The capital of France is Paris.'


def tokenizer_of(gguf: pathlib.Path) -> Tokenizer:
    return Tokenizer.from_files(converted.from_gguf(import_hf.open_source(str(gguf)).metadata, str(gguf)), str(gguf))
