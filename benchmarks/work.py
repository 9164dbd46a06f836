"""Multiply-adds of the pieces of training, counted by hand from the sizes of matrix products; 2 FLOPs each.

`cost_analysis` counts the body of a scan once, however often it runs; this count knows. It is of this library's form
(SPEC section 5 calls it streaming features, bilinear output, staircase rollouts): each product as often as that form
needs it. Not counted: elementwise work, drawing, optimizers, and what is computed once for all sentences, such as
the empty prefix's feature. A gradient repeats a product once for each of its operands that has a gradient.
"""

from leakgan_jax.config import Config


def stream(c: Config) -> int:
    """One token read into D's convolutions: it stands at `w` places in the windows of a filter of width `w`."""
    return c.discriminator_embedding * sum(w * n for w, n in zip(c.filter_windows, c.filter_counts))


def convolutions(c: Config) -> int:
    """D's convolutions of a whole sentence, window by window."""
    windows = zip(c.filter_windows, c.filter_counts)
    return c.discriminator_embedding * sum((c.length - w + 1) * w * n for w, n in windows)


def highway(c: Config) -> int:
    """One leaked feature from its pooled convolutions: transform and gate."""
    return 2 * c.feature_dim**2


def manager_inputs(c: Config) -> int:
    """One feature's share of the gates of the Manager's LSTM."""
    return c.feature_dim * 4 * c.manager_hidden


def manager_rest(c: Config) -> int:
    """One step of the Manager's LSTM from its own output, and the goal."""
    return c.manager_hidden * 4 * c.manager_hidden + c.manager_hidden * c.feature_dim


def goal_embedding(c: Config) -> int:
    """W_psi of one goal."""
    return c.feature_dim * c.goal_dim


def worker_output(c: Config) -> int:
    """The logits of one token: `(h (x) w) W' + w b'`, or `O_t w` with `O_t` from `h`."""
    return (c.worker_hidden + 1) * c.goal_dim * c.vocab_size


def worker(c: Config) -> int:
    """One step of the Worker's LSTM, and the logits of one token."""
    lstm = (c.worker_embedding + c.worker_hidden) * 4 * c.worker_hidden
    return lstm + worker_output(c)


def sampled_token(c: Config) -> int:
    """One token drawn, and the feature of the prefix that it ends."""
    generator = manager_inputs(c) + manager_rest(c) + goal_embedding(c) + worker(c)
    return generator + stream(c) + highway(c)


def sample(c: Config, num: int) -> int:
    """`num` sentences sampled."""
    return num * c.length * sampled_token(c)


def sample_with_values(c: Config, num: int) -> int:
    """`num` sentences sampled, with `N` completions from the end of each block but the last, all judged."""
    ends = range(c.goal_horizon, c.length, c.goal_horizon)
    tokens = c.length + c.completions * sum(c.length - end for end in ends)
    judged = 1 + c.completions * len(ends)
    return num * (tokens * sampled_token(c) + judged * c.feature_dim)


def features(c: Config, num: int) -> int:
    """The leaked features of every prefix of `num` known sentences."""
    return num * c.length * (stream(c) + highway(c))


def score(c: Config, num: int) -> int:
    """The log-probabilities of `num` known sentences, from tokens."""
    return sample(c, num)  # the same products, all positions at once


def generator_update(c: Config, num: int) -> int:
    """Losses and gradients of Manager and Worker on `num` sentences with known features.

    Features are data, and to the Worker so are goals: the products that take them in have one gradient, not two.
    """
    once = manager_inputs(c) + goal_embedding(c)
    twice = manager_rest(c) + worker(c)
    return num * c.length * (2 * once + 3 * twice)


def mle_step(c: Config, num: int) -> int:
    """One supervised update on `num` sentences."""
    return features(c, num) + generator_update(c, num)


def generator_step(c: Config) -> int:
    """One adversarial update, sampling and completions included."""
    return sample_with_values(c, c.batch_size) + generator_update(c, c.batch_size)


def discriminator_step(c: Config, num: int) -> int:
    """One update of D on `num` sentences."""
    return num * 3 * (convolutions(c) + highway(c) + c.feature_dim)


def discriminator_draw(c: Config, num: int) -> int:
    """`num` negatives drawn, and D's epochs over them and as many positives, whole batches only."""
    steps = c.discriminator_epochs * (2 * num // c.batch_size)
    return sample(c, num) + steps * discriminator_step(c, c.batch_size)


def evaluate(c: Config) -> int:
    """An evaluation: samples drawn and held-out sentences scored; samples scored under the oracle."""
    return sample(c, c.eval_samples) + score(c, c.num_heldout) + oracle(c, c.eval_samples)


def oracle(c: Config, num: int) -> int:
    """`num` sentences sampled from the synthetic oracle, or scored under it; none where there is real text."""
    token = c.oracle_hidden * (4 * c.oracle_hidden + c.vocab_size)
    return 0 if c.is_text else num * c.length * token


def textbook_sample(c: Config, num: int) -> int:
    """`num` sentences sampled in the textbook form: D's convolutions from scratch for every prefix."""
    return sample(c, num) + num * c.length * (convolutions(c) - stream(c))


def textbook_sample_with_values(c: Config, num: int) -> int:
    """The same with completions: each reads its prefix again, but for the logits of what it is given."""
    given = sampled_token(c) - stream(c) + convolutions(c) - worker_output(c)
    judged = convolutions(c) + highway(c) + c.feature_dim
    ends = range(c.goal_horizon, c.length, c.goal_horizon)
    completed = sum(c.length * given + (c.length - end) * worker_output(c) + judged for end in ends)
    return textbook_sample(c, num) + num * (c.completions * completed + judged)


def textbook_update(c: Config, num: int) -> int:
    """An update of Manager and Worker on `num` sentences in the textbook form, features of all prefixes included.

    Step by step, features and goals are one operand with what has a gradient, so their products have two as well.
    """
    prefixes = (c.length + 1) * (convolutions(c) + highway(c))
    return generator_update(c, num) + num * (prefixes + c.length * (manager_inputs(c) + goal_embedding(c)))


def textbook_generator_step(c: Config) -> int:
    """One adversarial update in the textbook form."""
    return textbook_sample_with_values(c, c.batch_size) + textbook_update(c, c.batch_size)
