"""The baselines of the paper, one a file: `init`, `pretrain_step`, `train_step` and `sample`, as LeakGAN has them.

All have the same generator, a plain LSTM as wide as LeakGAN's Worker, and are sampled and scored by `rollout`, trained
by `training` and run by `run`, all of which go by `config.model`.
"""
