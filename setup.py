"""The distribution `quartet-llm`: what it needs, and why. constraints.txt has the tested versions."""

from setuptools import find_namespace_packages, setup

# A lower bound is what was run. An upper bound needs a reason of its own.
REQUIRED = [
    'absl-py',  # flags of llm/main.py; ml_collections' config flags are built on it
    'array_record',  # the file format of our TFDS sets: random access without TensorFlow
    'datasketch',  # MinHash: near-copies among documents
    'etils[epath]',  # paths that may be in a bucket
    'flax>=0.12.8,<0.13',  # Linen; it is in maintenance, and a release may drop it
    'gguf>=0.19.0',  # dequantises the blocks of GGUF files
    'grain>=0.2.18',  # order of rows: shuffling and mixing as pure functions of the index
    'jax>=0.10.2,<0.11',  # a minor release may change shardings' defaults, and libtpu is paired with it
    'Jinja2',  # the page about a pipeline; escapes what models say
    'matplotlib',  # its plots
    'ml_collections>=1.1.0',  # ConfigDict, and overrides on the command line
    'numpy>=2.0',  # rows on the host
    'optax>=0.2.8',  # AdamW, clipping, schedules
    'orbax-checkpoint>=0.12.8,<0.13',  # AsyncCheckpointer and ocp.args; its next interface is still moving
    'pip',  # fetches the packages that hold our data sets, by hash
    'psutil',  # tells whether a run's owner is still alive
    'py3langid',  # the language of documents
    'PyYAML',  # the question-answer exchanges are YAML
    'rich>=15.0.0',  # bars and tables
    'scikit-learn',  # yardsticks: TF-IDF, ridge and logistic regression
    'scipy',  # connected components of near-copies; the temperature that calibrates scores
    'sentencepiece>=0.2.3',  # the tokenizer
    'tensorboard>=2.21.0',  # writes event files; needs no TensorFlow
    'tensorflow-datasets>=4.9.10',  # builders of data sets; needs no TensorFlow with array_record
    'tokenizers>=0.23.3',  # other people's tokenizers: tokenizer.json
    'vaderSentiment',  # a lexicon of sentiment: a yardstick, and a check that prompts carry none
]

EXTRAS = {
    'test': [
        'hypothesis',  # properties over many inputs
        'libtpu==0.0.42.*',  # compiles for TPUs without one: tools/plan.py
        'packaging',  # reads this file and constraints.txt
        'pytest>=9.0',  # runs tests/
        'pytest-xdist',  # two workers: compiling uses one core
        'safetensors>=0.8.0',  # the format's own library: what our reader and writer are held against
    ],
    'tpu': [
        'libtpu==0.0.42.*',  # jax 0.10.2's partner, as its own extra says; a newer one died in as_text()
    ],
}

setup(
    name='quartet-llm',
    version='0.1.0',
    description='Four-stage training of large models in JAX: pretrain, sft, reward, ppo',
    python_requires='>=3.11',  # jax 0.10 needs it
    packages=find_namespace_packages(include=['llm', 'llm.*', 'configs', 'configs.*']),
    package_data={'llm.report': ['page.html.jinja']},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)
