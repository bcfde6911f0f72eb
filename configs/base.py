"""Every config key, once, with its meaning, its unit and its default.

In: nothing. Out: ConfigDicts that the recipes in this folder change and that `llm.config` checks.
Left out: sizes of models (`sizes.py`, `families/`). `placeholder` marks a key that may stay empty.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def execution() -> ConfigDict:
    """How weights are run; nothing here changes what a checkpoint means."""
    return ConfigDict({
        # Devices along each mesh axis; -1, at most once, takes the rest. `context` splits the length of rows.
        'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'context': 1},
        # Logical axis -> mesh axes. The first group are axes of weights, the second of activations.
        'rules': {
            'vocab': ('tensor',), 'embed': ('fsdp', 'context'), 'heads': ('tensor',), 'kv_heads': ('tensor',),
            'mlp': ('tensor',), 'head_dim': (), 'layers': (), 'positions': (), 'norm': (),
            'batch': ('data', 'fsdp'), 'length': ('context',), 'act': (), 'act_heads': ('tensor',),
            'act_kv_heads': ('tensor',), 'act_mlp': ('tensor',), 'act_vocab': ('tensor',)},
        # Of matmuls and activations; parameters, norms, softmax and losses are float32. bfloat16 on TPU.
        'compute_dtype': 'float32',
        # Of whole rows: einsum, or splash (a TPU kernel that holds no scores; rows of a multiple of 128 tokens).
        # Decoding always uses einsum.
        'attention': 'einsum',
        # What the backward pass recomputes: none; minimal (all but matmul results); qkv (all but queries, keys, values
        # and what attention gives); full (every layer from its input); offload (so too, with inputs in host memory).
        'remat': 'none',
        # Layers unrolled in each step of the scan over layers; 0 is all of them: faster on CPU, slower to compile.
        'scan_unroll': 0,
        # Rows of the token table whose logits are alive at once in the loss. A larger vocabulary is cut into chunks,
        # whose logits the backward pass computes again.
        'logits_chunk_vocab': 8192,
        # Pieces that a batch is cut into; gradients are accumulated over them.
        'micro_batches': 1,
    })


def model(**keys) -> ConfigDict:
    """What a model is; the sizes of released ones are in `families/`. From `kind` on, a family sets what it needs."""
    config = ConfigDict({
        'vocab_size': placeholder(int),     # rows of the token table; 0 in a vision model.
        'model_dim': placeholder(int),      # width of the residual stream.
        'num_layers': placeholder(int),
        'num_heads': placeholder(int),      # of queries.
        'num_kv_heads': placeholder(int),   # of keys and values; a divisor of num_heads.
        'head_dim': placeholder(int),
        'mlp_dim': placeholder(int),        # width inside the feed-forward.
        'max_positions': placeholder(int),  # tokens of a row, at most.
        'positions': placeholder(str),      # learned, rotary, or relative (XLNet).
        'rope_theta': 10_000.0,             # base of the rotary or relative frequencies.
        'norm': placeholder(str),           # layernorm or rmsnorm.
        'norm_eps': placeholder(float),
        'mlp': placeholder(str),            # gelu (tanh form), gelu_exact, swiglu, or geglu (tanh form).
        'use_bias': placeholder(bool),      # of every matrix in a layer, and of layernorms.
        'tie_embeddings': placeholder(bool),  # logits come from the token table.
        'kind': 'decoder',                  # decoder, encoder, two_stream (XLNet) or vision.
        'norm_first': True,                 # a norm before each part; otherwise after it is added, and none at the end.
        'sandwich_norms': False,            # a norm also after each part, before it is added (Gemma 2, 3).
        'norm_offset': 0.0,                 # 1: norms multiply by 1 + scale (Gemma).
        'qkv_bias': False,                  # biases of query, key and value without use_bias (Qwen2).
        'qk_norm': False,                   # a norm of each head's query and key (Qwen3, Gemma 3).
        'query_scale': 0.0,                 # scores are divided by its root; 0: head_dim.
        'attention_softcap': 0.0,           # bound of scores, through tanh (Gemma 2); 0: none.
        'logits_softcap': 0.0,              # bound of logits, likewise.
        'embed_scale': 1.0,                 # what token embeddings are multiplied by (Gemma).
        'window': 0,                        # tokens that a query sees, itself included; 0: all.
        'global_every': 0,                  # every so manieth layer has no window; 0: all have it.
        'rope_local_theta': 0.0,            # rope_theta of the layers with a window (Gemma 3); 0: the same.
        'rope_scaling': placeholder(ConfigDict),  # kind (linear, llama3), factor, and for llama3 low_freq_factor,
                                            # high_freq_factor, original_positions; empty: none.
        'token_types': 0,                   # kinds of tokens (BERT: sentence A or B), each with an embedding.
        'position_offset': 0,               # row of the position table that position 0 has (RoBERTa: 2).
        'embed_norm': False,                # a norm of the embeddings' sum (BERT).
        'image_size': 0,                    # pixels, both ways.
        'patch_size': 0,                    # pixels, both ways; a divisor of image_size.
        'image_channels': 0,
        'num_classes': 0,                   # of a head that names classes.
    })
    config.update(keys)
    return config


def source(**keys) -> ConfigDict:
    """One source of documents; one of tfds, jsonl and text is given."""
    config = ConfigDict({
        'tfds': placeholder(str),   # TFDS name, e.g. 'reviews/rank', built as array_record.
        'jsonl': placeholder(str),  # file or glob of JSON lines.
        'text': placeholder(str),   # file or glob of plain text, a document each.
        'fields': {},               # our field name -> the source's own, where they differ.
        'train_split': 'train',            # of a TFDS set.
        'validation_split': 'validation',  # of a TFDS set.
        'validation_files': placeholder(str),  # file or glob; empty: documents are held out of the training files.
        'holdout_percent': 5.0,     # of documents, by a hash of their content.
        'weight': 1.0,              # share of rows in the mixture, relative to the other sources.
        'late_weight': placeholder(float),  # the same from data.late_from_step on; empty: as before.
    })
    with config.unlocked():
        config.update(keys)
    return config


def data(**sources: ConfigDict) -> ConfigDict:
    """A mixture of named sources."""
    return ConfigDict({
        'sources': sources,
        'data_dir': '~/.cache/quartet',  # where downloads and TFDS sets are kept; may be a bucket.
        'max_bad_percent': 1.0,          # of rows that may be malformed before the run stops.
        'late_from_step': 0,             # step after which late_weight counts; 0: it never does.
        # What is left out of documents (`llm/data/clean.py`); what was dropped and why is in the report.
        'clean': {
            'min_chars': 2,               # of a document.
            'max_chars': 0,               # of a document; 0: any length.
            'max_repeated_share': 0.5,    # of a document's words, in phrases of five words that it has said before.
            'language': placeholder(str), # ISO 639-1, e.g. 'en'; empty: any.
            'min_language_share': 0.5,    # of a document's letters, in passages of that language.
            'duplicate_similarity': 0.8,  # Jaccard, of phrases of words; of alike documents one is kept; 0: all are.
            'overlap_words': 13,          # a training passage that shares this many words in a row with an evaluation
                                          # split is left out; 0: none is.
        },
    })


def optim() -> ConfigDict:
    """AdamW or Muon."""
    return ConfigDict({
        'name': 'adamw',          # adamw, or muon: orthogonal updates of hidden matrices, AdamW for the rest.
        'learning_rate': 1e-3,    # peak.
        'warmup_steps': 100,      # linear, from zero.
        'schedule': 'cosine',     # cosine, wsd (warm-up, stable, decay) or constant, after the warm-up.
        'schedule_steps': 1000,   # length of the whole schedule, in steps; a run may stop before or after.
        'decay_fraction': 0.2,    # of schedule_steps, at its end, that wsd decays over.
        'final_fraction': 0.1,    # of learning_rate that the schedule ends at.
        'weight_decay': 0.1,      # of matrices and embeddings, decoupled, times the learning rate.
        'b1': 0.9, 'b2': 0.95, 'eps': 1e-8,
        'clip_norm': 1.0,         # of the whole gradient.
        'ema_decay': 0.0,         # of the average of the weights, per step; 0 keeps none.
    })


def stage(name: str) -> ConfigDict:
    """Keys that all stages have."""
    return ConfigDict({
        'stage': name,
        'seed': 0,
        'init_from': placeholder(str),  # parent: stage:NAME within a pipeline, or PATH[@step].
        'exec': execution(),
        'data': data(),
        'optim': optim(),
        'batch_size': 16,         # global, in rows.
        'seq_len': 128,           # tokens of a row.
        # Steps of this run. Not part of its identity, so that it can be extended; the result is that of one run if the
        # first end was a multiple of eval_every_steps, because there is an evaluation at the end.
        'stop_step': 1000,
        'dropout': 0.0,           # probability, at embeddings, attention weights and residual branches.
        'log_every_steps': 10,
        'eval_every_steps': 200,  # part of the identity: it decides which step is the best.
        'eval_rows': 256,         # of each source, at most, in an evaluation.
        'save_every_steps': 200,
        'keep_checkpoints': 2,    # sound ones, the best one not counted.
        # A step whose numbers are not finite is never saved: the run goes back to its newest sealed step, and leaves
        # out that step's batch. A spike (of loss, gradient, reward or KL) may be held for one, too.
        'guard': {
            'spike': 0.0,         # deviations beyond the median of the last steps that are one, e.g. 20; 0: none is.
            'window': 32,         # steps that it is compared with; the first half of them passes unseen.
            'rewinds': 3,         # that a run may take; the next step that goes wrong ends it, with exit code 43.
        },
        # What is measured when the stage ends, on the test split (the validation split where there is none).
        'figures': {
            'rows': 512,                    # of each source, at most: rows of text, chats, answers, prompts; 0: none.
            'yardstick_bytes': 20_000_000,  # of training text that each yardstick is fitted on, at most.
        },
        'samples': {
            'prompts': (),        # what is continued or answered after the stage, for a person to read.
            'max_new_tokens': 48,
            'temperature': 0.7,
        },
    })


def pretrain(model: ConfigDict) -> ConfigDict:
    """Next-token prediction on windows of text."""
    config = stage('pretrain')
    with config.unlocked():
        config.model = model
        config.tokenizer = ConfigDict({
            'path': placeholder(str),   # a .model of ours, or a folder of somebody's tokenizer; empty: one is trained.
            'train_bytes': 10_000_000,  # of text that it is trained on, at most.
            'kind': 'bpe',              # of one that is trained: bpe (with bytes for the rest) or char.
        })
        config.z_loss = 0.0             # coefficient of the squared log-partition (PaLM: 1e-4).
    return config


def sft() -> ConfigDict:
    """Next-token prediction on the answers of chats."""
    config = stage('sft')
    with config.unlocked():
        config.patience = 3             # evaluations without a better one before the stage ends.
        # What weighs the same in the training loss: tokens, or chats however long their answers. The held-out loss,
        # which chooses the step, is a mean over tokens.
        config.weigh = 'tokens'
        # Chats whose answer is one of a few labels; the stage's figures say how often the likeliest label is right.
        config.choices = data()
    return config


def reward() -> ConfigDict:
    """A scalar head on ranked answers."""
    config = stage('reward')
    with config.unlocked():
        config.ranked_answers = 4       # K: answers to one prompt in one batch element.
        config.prompt_data = data()     # prompts that the SFT policy answers, to normalise the scores.
        config.normalize_samples = 256  # answers whose scores give the mean and the deviation.
        config.max_prompt_tokens = 64   # of those prompts.
        config.max_new_tokens = 48      # of those answers.
        config.temperature = 1.0        # of those answers.
    return config


def ppo() -> ConfigDict:
    """Proximal policy optimisation against the scorer. A step is one iteration: rollout, score, update.

    `batch_size` is the minibatch, in answers. Learning rate and its schedule count updates of the weights.
    """
    config = stage('ppo')
    with config.unlocked():
        config.reward_from = placeholder(str)  # the scorer: stage:NAME or PATH[@step].
        config.rollout_batch = 64          # answers sampled in an iteration, global.
        config.rollout_rules = {}          # of exec.rules, those that are others while answers are sampled.
        config.epochs = 4                  # passes over them.
        config.max_prompt_tokens = 64
        config.max_new_tokens = 48
        config.seq_len = 112               # the sum of these two.
        config.temperature = 1.0           # of training rollouts; log-probs are taken at it too.
        config.discount = 1.0              # gamma.
        config.gae_lambda = 0.95
        config.clip_epsilon = 0.2          # of the probability ratio.
        config.value_clip_epsilon = 0.2    # of the value's change, in units of normalised reward.
        config.value_coef = 0.5
        config.value_learning_rate = 1e-4  # peak; the rest of `optim` holds for both.
        config.value_warmup_steps = 2      # iterations that train the value alone.
        config.kl_coef = 0.05              # beta, at the start.
        config.kl_target = 6.0             # nats an answer.
        config.kl_horizon = 10_000.0       # answers; inf keeps kl_coef fixed.
        config.kl_budget = 20.0            # nats an answer; beyond it the stage ends.
        config.missing_eos_penalty = 1.0   # in deviations of the normalised score.
        config.value_from = 'reward'       # what the value model starts as: reward (the scorer) or sft (a new head).
        config.whiten_advantages = True
        config.ptx_coef = 0.0              # of a next-token loss on chats beside the policy's (PPO-ptx); 0: none.
        config.ptx_data = data()           # those chats, as many rows of seq_len as answers.
        config.gold_data = data()          # rated texts, best unseen by any model; a scorer fitted on them judges too.
        # Evaluations over which a falling gold score and a rising reward end the stage; 0: they do not.
        config.gold_window = 4
        config.min_distinct_share = 0.8    # of the SFT policy's distinct-2, below which a step is not chosen.
        config.best_of = 4                 # SFT answers to each prompt, of which the scorer picks one, in the figures.
    return config


def defaults() -> dict[str, dict]:
    """Every key at its default, by stage; under 'source', those of a source of data."""
    configs = {'pretrain': pretrain(ConfigDict()), 'sft': sft(), 'reward': reward(), 'ppo': ppo(), 'source': source()}
    return {name: config.to_dict() for name, config in configs.items()}


def on_pod(config: ConfigDict) -> None:
    """How a stage is run on a TPU pod: every chip on `fsdp`, bfloat16 matmuls, layers computed again."""
    config.exec.mesh.update(data=1, fsdp=-1)
    config.exec.compute_dtype = 'bfloat16'
    config.exec.remat = 'full'
    config.exec.attention = 'splash'
    config.exec.scan_unroll = 1  # compile time does not grow with depth


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    if variant not in known:
        raise ValueError(f'variant {variant!r} is not known; use one of {", ".join(filter(None, known))}, or none')


def shrink(config: ConfigDict) -> None:
    """The `:tiny` form of any recipe: seconds on two cores, the same code path."""
    config.batch_size = 8
    config.stop_step = config.optim.schedule_steps = 20
    config.optim.warmup_steps = 2
    config.log_every_steps = 1
    config.eval_every_steps = config.save_every_steps = 10
    config.eval_rows = 32
    config.samples.max_new_tokens = 16
