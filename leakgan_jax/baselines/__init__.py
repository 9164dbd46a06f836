"""The baselines of the paper, one a file: `init`, `pretrain_step`, `train_step` and `sample`.

All have the same generator, a plain LSTM as wide as LeakGAN's Worker. `rollout` samples and scores them, `training`
trains them (its `Model` says what it needs of one) and `run` runs them, as LeakGAN: by `config.model`.
"""
