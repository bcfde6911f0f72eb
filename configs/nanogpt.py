"""Characters of tiny-shakespeare: the model and the recipe that nanoGPT's README gives for a CPU.

Source: nanoGPT, README, "I only have a macbook": 4 layers, width 128, blocks of 64, 12 rows, 2,000 steps; learning
rate, betas and decay of its config/train_shakespeare_char.py. Differences: rows are the windows of a stream in a
shuffled order, not random offsets; the tokenizer has 7 control tokens beside the 65 characters.
`:better` has the same parameters, rows and steps, trained better (experiments/nanogpt).
The text, of 1,115,394 bytes, is Karpathy's char-rnn's (SHA-256 86c4e6aa...): put it where you start, or name it by
--config.data.sources.shakespeare.text=FILE. Its last tenth is held out, as in nanoGPT.
Command: python -m llm.main --config=configs/nanogpt.py --workdir=runs/nanogpt
Hardware: two CPU cores, two minutes. Expected: nanoGPT's README has a loss of 1.88; ours are in experiments/nanogpt.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = '') -> ConfigDict:
    base.check_variant(variant, ('', 'better', 'tiny'))
    config = base.pretrain(base.model(
        vocab_size=72, model_dim=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=512,
        max_positions=64, positions='learned', norm='layernorm', norm_eps=1e-5, mlp='gelu_exact', use_bias=False,
        tie_embeddings=True))
    config.tokenizer.kind = 'char'
    config.data = base.data(shakespeare=base.source(text='tiny_shakespeare.txt', holdout_percent=10.0))
    config.data.clean.update(max_repeated_share=1.0, duplicate_similarity=0.0, overlap_words=0)
    config.batch_size, config.seq_len = 12, 64
    config.stop_step = config.optim.schedule_steps = 2000
    config.optim.update(learning_rate=1e-3, warmup_steps=100, final_fraction=0.1, weight_decay=0.1, b2=0.99)
    config.eval_every_steps = config.save_every_steps = 500
    config.log_every_steps = 50
    config.eval_rows = 2000  # all of them
    config.samples.prompts = ('ROMEO:\n',)
    if variant == 'better':
        config.optim.update(name='muon', learning_rate=1e-2, final_fraction=0.0)
    if variant == 'tiny':
        base.shrink(config)
    return config
