"""Frozen dataclasses for every config, made from ConfigDicts at the door.

In: a `ConfigDict` from `configs/`, with overrides from the command line applied.
Out: a `PretrainConfig`, `SFTConfig`, `RewardConfig` or `PPOConfig`; every key known, typed and present.
Left out: defaults and explanations of keys (`configs/base.py`), what a model is (`architecture.py`), how its weights
are run (`execution.py`), anything that touches disk or devices.

A field here has a default only if that value is neutral, that is, means "as if the key did not exist".
Neutral values are left out of a run's identity, so that adding a key with one orphans no finished run.
"""

import dataclasses

from llm.architecture import ModelConfig
from llm.door import from_dict
from llm.errors import at_least, one_of, positive, UserError, within
from llm.execution import ExecConfig, SPLASH_BLOCK


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of documents. Exactly one of `tfds`, `jsonl`, `text` is set."""

    tfds: str | None
    jsonl: str | None
    text: str | None
    fields: dict[str, str]
    train_split: str
    validation_split: str
    validation_files: str | None
    holdout_percent: float
    weight: float
    late_weight: float | None = None

    def __post_init__(self):
        given = [key for key in ('tfds', 'jsonl', 'text') if getattr(self, key)]
        if len(given) != 1:
            raise UserError(f'a data source sets {given or "none"} of tfds, jsonl and text; set exactly one')
        if not 0 <= self.holdout_percent < 100:
            raise UserError(f'holdout_percent={self.holdout_percent} is not a percentage below 100')


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """What is left out of documents; the defaults leave out nothing."""

    min_chars: int = 1
    max_chars: int = 0
    max_repeated_share: float = 1.0
    language: str | None = None
    min_language_share: float = 0.0
    duplicate_similarity: float = 0.0
    overlap_words: int = 0

    def __post_init__(self):
        at_least(1, self, 'min_chars', section='clean.')
        at_least(0, self, 'max_chars', 'overlap_words', section='clean.')
        within(self, 'max_repeated_share', 'min_language_share', 'duplicate_similarity', section='clean.')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where rows come from, by source name."""

    sources: dict[str, SourceConfig]
    data_dir: str
    max_bad_percent: float
    late_from_step: int = 0
    clean: CleanConfig = CleanConfig()

    def __post_init__(self):
        at_least(0, self, 'late_from_step', section='data.')


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How the pretraining stage gets its tokenizer; later stages take their parent's."""

    path: str | None
    train_bytes: int
    kind: str = 'bpe'  # 'bpe' | 'char'

    def __post_init__(self):
        one_of('tokenizer.kind', self.kind, ('bpe', 'char'))


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW or Muon with warm-up, a schedule, clipping, and optionally an average of the weights."""

    learning_rate: float
    warmup_steps: int
    schedule: str  # 'cosine' | 'wsd' | 'constant'
    schedule_steps: int
    decay_fraction: float
    final_fraction: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float
    ema_decay: float = 0.0
    name: str = 'adamw'  # 'adamw' | 'muon'

    def __post_init__(self):
        one_of('optim.name', self.name, ('adamw', 'muon'))
        one_of('optim.schedule', self.schedule, ('cosine', 'wsd', 'constant'))
        positive(self, 'learning_rate', 'eps', 'clip_norm', section='optim.')
        at_least(0, self, 'warmup_steps', 'weight_decay', section='optim.')
        at_least(1, self, 'schedule_steps', section='optim.')
        within(self, 'decay_fraction', 'final_fraction', 'b1', 'b2', 'ema_decay', section='optim.')


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """What is generated for a person to read, after a stage and on demand."""

    prompts: tuple[str, ...]
    max_new_tokens: int
    temperature: float  # 0: the likeliest token each time

    def __post_init__(self):
        at_least(1, self, 'max_new_tokens', section='samples.')
        at_least(0, self, 'temperature', section='samples.')


@dataclasses.dataclass(frozen=True)
class FiguresConfig:
    """What is measured when a stage ends."""

    rows: int = 0
    yardstick_bytes: int = 0

    def __post_init__(self):
        at_least(0, self, 'rows', section='figures.')
        at_least(1000 if self.rows else 0, self, 'yardstick_bytes', section='figures.')


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What a step that went wrong is known by; the defaults know it by numbers that are not finite."""

    spike: float = 0.0
    window: int = 32
    rewinds: int = 3

    def __post_init__(self):
        at_least(0, self, 'spike', 'rewinds', section='guard.')
        at_least(4, self, 'window', section='guard.')


_NO_DATA = DataConfig({}, '', 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Keys that all four stages have."""

    stage: str
    seed: int
    init_from: str | None
    exec: ExecConfig
    data: DataConfig
    optim: OptimConfig
    batch_size: int
    seq_len: int
    stop_step: int
    dropout: float
    log_every_steps: int
    eval_every_steps: int
    eval_rows: int
    save_every_steps: int
    keep_checkpoints: int
    samples: SamplesConfig
    figures: FiguresConfig = FiguresConfig()
    guard: GuardConfig = GuardConfig()

    def __post_init__(self):
        at_least(1, self, 'batch_size', 'seq_len', 'stop_step', 'log_every_steps', 'eval_every_steps', 'eval_rows',
                 'save_every_steps')
        at_least(0, self, 'seed')
        if self.batch_size % self.exec.micro_batches:
            raise UserError(f'batch_size={self.batch_size} is not divisible by '
                            f'exec.micro_batches={self.exec.micro_batches}; use a multiple')
        block = SPLASH_BLOCK * max(self.exec.mesh.context, 1)
        if self.exec.attention == 'splash' and self.seq_len % block:
            raise UserError(f"seq_len={self.seq_len} is not a multiple of {block}, which exec.attention='splash' needs"
                            f"; use one, or exec.attention='einsum'")
        if not 0 <= self.dropout < 1:
            raise UserError(f'dropout={self.dropout} is not a probability below 1; use 0 for none')
        if self.keep_checkpoints < 2:
            raise UserError(f'keep_checkpoints={self.keep_checkpoints} leaves nothing to fall back to; use 2 or more')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """Next-token prediction on packed windows of text."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    z_loss: float

    def __post_init__(self):
        super().__post_init__()
        if self.model.kind != 'decoder':
            raise UserError(f'model.kind={self.model.kind!r} does not predict the next token; use decoder')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(StageConfig):
    """Next-token prediction on the answers of packed chats."""

    patience: int
    weigh: str = 'tokens'  # 'tokens' | 'chats'
    choices: DataConfig = _NO_DATA

    def __post_init__(self):
        super().__post_init__()
        one_of('weigh', self.weigh, ('tokens', 'chats'))
        at_least(1, self, 'patience')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(StageConfig):
    """A scalar head trained on ranked answers; normalised on answers that the SFT policy samples."""

    ranked_answers: int
    prompt_data: DataConfig
    normalize_samples: int
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float

    def __post_init__(self):
        super().__post_init__()
        # One answer makes no pair, one sample has no deviation, and greedy samples are all alike.
        at_least(2, self, 'ranked_answers', 'normalize_samples')
        at_least(1, self, 'max_prompt_tokens', 'max_new_tokens')
        positive(self, 'temperature')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(StageConfig):
    """Proximal policy optimisation against a frozen scorer, with a penalty on the divergence from SFT."""

    reward_from: str | None
    rollout_batch: int
    epochs: int
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float
    discount: float
    gae_lambda: float
    clip_epsilon: float
    value_clip_epsilon: float
    value_coef: float
    value_learning_rate: float
    value_warmup_steps: int
    kl_coef: float
    kl_target: float
    kl_horizon: float
    kl_budget: float
    missing_eos_penalty: float
    value_from: str = 'reward'  # 'reward' | 'sft'
    whiten_advantages: bool = True
    ptx_coef: float = 0.0
    ptx_data: DataConfig = _NO_DATA
    gold_data: DataConfig = _NO_DATA
    gold_window: int = 0
    min_distinct_share: float = 0.0
    best_of: int = 1
    rollout_rules: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        at_least(1, self, 'rollout_batch', 'epochs', 'max_prompt_tokens', 'max_new_tokens')
        at_least(0, self, 'value_warmup_steps')
        at_least(0, self, 'value_coef', 'kl_coef', 'missing_eos_penalty', 'ptx_coef', 'gold_window')
        at_least(1, self, 'best_of')
        one_of('value_from', self.value_from, ('reward', 'sft'))
        within(self, 'discount', 'gae_lambda', 'min_distinct_share')
        if self.gold_window and self.gold_window < 3:
            raise UserError(f'gold_window={self.gold_window} is too short to tell a trend; use 3 or more, or 0')
        if self.ptx_coef and not self.ptx_data.sources:
            raise UserError(f'ptx_coef={self.ptx_coef} needs chats; name a source in ptx_data, or set ptx_coef to 0')
        positive(self, 'temperature', 'kl_target', 'kl_horizon', 'kl_budget', 'clip_epsilon', 'value_clip_epsilon',
                 'value_learning_rate')
        if self.dropout:
            raise UserError(f'dropout={self.dropout} would part the trainer\'s log-probs from the sampler\'s; use 0')
        if self.rollout_batch % self.batch_size:
            raise UserError(f'rollout_batch={self.rollout_batch} is not divisible by '
                            f'batch_size={self.batch_size}; use a multiple')
        if self.max_prompt_tokens + self.max_new_tokens != self.seq_len:
            raise UserError(f'seq_len={self.seq_len} is not max_prompt_tokens={self.max_prompt_tokens} plus '
                            f'max_new_tokens={self.max_new_tokens}; set seq_len to their sum')


STAGES = {'pretrain': PretrainConfig, 'sft': SFTConfig, 'reward': RewardConfig, 'ppo': PPOConfig}


def stage_config(config) -> StageConfig:
    """Turns one stage's ConfigDict into its dataclass; raises UserError on an unknown, missing or ill-typed key."""
    stage = config.get('stage')
    if stage not in STAGES:
        raise UserError(f'stage={stage!r} is not a stage; use one of {", ".join(STAGES)}')
    return from_dict(STAGES[stage], config.to_dict())
