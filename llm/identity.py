"""What a run is known by: the keys that change its result, and hashes of plain values.

In: a stage's config, or any JSON value. Out: flat keys; SHA-256 in hex.
Left out: content of files and parents, which join the keys where a run is resolved (`resolve.py`).
"""

import dataclasses
import hashlib
import json
import re
from typing import Any

from llm.config import DataConfig, StageConfig

# Keys that say how or for how long a run is made, not what it computes (DESIGN of a run's identity).
_NOT_IDENTITY = frozenset({
    'exec.mesh', 'exec.rules', 'exec.attention', 'exec.remat', 'exec.scan_unroll', 'exec.logits_chunk_vocab',
    'exec.micro_batches',
    'data.data_dir', 'prompt_data.data_dir', 'ptx_data.data_dir', 'gold_data.data_dir', 'stop_step',
    'log_every_steps', 'save_every_steps', 'keep_checkpoints', 'samples', 'figures', 'choices', 'best_of',
    'guard.rewinds', 'rollout_rules', 'init_from', 'reward_from', 'tokenizer.path'})
# Nor where files lie: their content is hashed beside these keys.
_FILES = re.compile(r'(prompt_|ptx_|gold_)?data\.sources\.[^.]+\.(jsonl|text|validation_files)')


def identity_dict(config: StageConfig) -> dict[str, Any]:
    """The keys that change the result, flat and dotted; keys at their neutral default are left out."""
    return dict(_identity_items(config, ''))


def digest(value: Any) -> str:
    """SHA-256, in hex, of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(',', ':'), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _identity_items(value: Any, path: str):
    if path in _NOT_IDENTITY or _FILES.fullmatch(path):
        return
    if isinstance(value, DataConfig) and not value.sources:
        return
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.default is dataclasses.MISSING or item != field.default:
                yield from _identity_items(item, f'{path}.{field.name}' if path else field.name)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _identity_items(value[key], f'{path}.{key}')
    else:
        yield path, list(value) if isinstance(value, tuple) else value
