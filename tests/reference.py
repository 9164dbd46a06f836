"""The slow, obvious NumPy reference of the model, the training signal and the losses, in float64.

It shares no code with the library: only NumPy and the standard library, written from the equations of Guo et al. 2018,
arXiv:1709.08624 (equation numbers below). One sentence at a time unless a shape says `B`. Letters: `B` sentences, `T`
tokens, `V` vocabulary, `F` leaked-feature width, `k` goal-embedding width, `C` goal horizon. A prefix of `t` tokens is
padded to `T` with PAD = V; its feature is `features[t]`, `t = 0..T`, and the Manager's goal on seeing it `goals[t]`.
`config` is any object with the library's setting names; `d`, `manager` and `worker` are nested dicts of arrays.
"""

import functools
import itertools

import numpy as np

# --- Small pieces ------------------------------------------------------------------------------------------------


def double(x):
    """Any array as NumPy float64."""
    return np.asarray(x, dtype=np.float64)


def sigmoid(x):
    """Logistic function, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * double(x)))


def unit(x):
    """`[n] -> [n]` of length 1; the zero vector stays zero."""
    x = double(x)
    norm = np.sqrt(np.sum(x * x))
    return x / norm if norm > 0 else x


def cosine(x, y):
    """`[n], [n] -> float`; the cosine of a zero vector with anything is 0."""
    return float(np.sum(unit(x) * unit(y)))


def log_softmax(x):
    """`[n] -> [n]` log-probabilities."""
    x = double(x)
    shifted = x - np.max(x)
    return shifted - np.log(np.sum(np.exp(shifted)))


def lstm(params, inputs):
    """`[n, width] -> [n, H]`: hidden state after each input, from a zero state; gates in the order i, f, g, o."""
    kernel, bias = double(params["kernel"]), double(params["bias"])
    size = len(bias) // 4
    c, h = np.zeros(size), np.zeros(size)
    hidden = []
    for x in double(inputs):
        gates = np.concatenate([x, h]) @ kernel + bias
        i, f, g, o = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hidden.append(h)
    return np.array(hidden)


def all_sentences(V, T):
    """Every sentence of `T` tokens below `V`: int `[V ** T, T]`."""
    return np.array(list(itertools.product(range(V), repeat=T)), dtype=np.int64)


def sentence_length(config, tokens):
    """`[T] -> int`: tokens up to and including the end token; T where there is none."""
    for position, token in enumerate(np.asarray(tokens)):
        if config.end_id is not None and token == config.end_id:
            return position + 1
    return len(tokens)


# --- Discriminator (Eq. 1) ---------------------------------------------------------------------------------------


def feature(config, d, tokens):
    """`[T] -> [F]`, Eq. 1: convolutions over the padded sentence (ReLU, max over positions), then the highway."""
    embedded = double(d["embedding"])[np.asarray(tokens)]
    pooled = []
    for w in config.filter_windows:
        kernel, bias = double(d[f"conv_{w}_kernel"]), double(d[f"conv_{w}_bias"])
        responses = []
        for start in range(len(embedded) - w + 1):
            response = bias.copy()
            for offset in range(w):
                response += embedded[start + offset] @ kernel[offset]
            responses.append(np.maximum(response, 0.0))
        pooled.append(np.max(responses, axis=0))
    y = np.concatenate(pooled)
    width = len(y)
    kernel, bias = double(d["highway_kernel"]), double(d["highway_bias"])
    transformed = np.maximum(y @ kernel[:, :width] + bias[:width], 0.0)
    gate = sigmoid(y @ kernel[:, width:] + bias[width:])
    return gate * transformed + (1.0 - gate) * y


def prefix_features(config, d, tokens):
    """`[T] -> [T + 1, F]`, Eq. 1: row t is the feature of the first t tokens, the rest PAD."""
    features = []
    for t in range(len(tokens) + 1):
        prefix = np.full(len(tokens), config.pad_id)
        prefix[:t] = tokens[:t]
        features.append(feature(config, d, prefix))
    return np.array(features)


def score(d, feature):
    """`[F] -> float`, Eq. 1: logit of "real", without dropout."""
    return float(np.sum(double(feature) * double(d["output_kernel"])) + double(d["output_bias"]))


def probability(d, feature):
    """`[F] -> float`, Eq. 1: probability of "real"."""
    return float(sigmoid(score(d, feature)))


# --- Manager and goals (Eq. 2-4) ---------------------------------------------------------------------------------


def goals(manager, features):
    """`[T + 1, F] -> [T, F]`, Eq. 2-3: unit goals g_0..g_{T-1} of the LSTM over f_0..f_{T-1}."""
    hidden = lstm(manager["lstm"], features[:-1])
    return np.array([unit(h @ double(manager["output_kernel"]) + double(manager["output_bias"])) for h in hidden])


def held_goals(config, manager, goals):
    """`[T, F] -> [T / C, F]`, released reading of Eq. 4: the summed goal that block j holds, before projection."""
    horizon = config.goal_horizon
    held = [double(manager["initial_goal"])]
    for block in range(1, len(goals) // horizon):
        total = np.zeros(len(goals[0]))
        for i in range(1, horizon + 1):
            total += goals[block * horizon - i]
        held.append(total)
    return np.array(held)


def goal_embeddings(config, manager, worker, goals):
    """`[T, F] -> [T, k]`, Eq. 4: row t is w_t, which token t + 1 uses; both readings."""
    horizon, kernel = config.goal_horizon, double(worker["goal_kernel"])
    embeddings = []
    for t in range(len(goals)):
        if config.reading == "released":
            embeddings.append(unit(held_goals(config, manager, goals)[t // horizon] @ kernel))
            continue
        total = np.zeros(len(kernel))
        now = t // horizon * horizon if config.goals == "held" else t
        for i in range(1, horizon + 1):
            total += goals[now - i] if now - i >= 0 else double(worker["initial_goal"])
        embeddings.append(total @ kernel)
    return np.array(embeddings)


# --- Worker, likelihood and sampling (Eq. 5-6) -------------------------------------------------------------------


def step_logits(config, manager, worker, d, tokens):
    """`[T] -> [T, V]`, Eq. 5-6: row t is `O_t w_t`, the logits of token t + 1 given the first t, before temperature."""
    embeddings = goal_embeddings(config, manager, worker, goals(manager, prefix_features(config, d, tokens)))
    table = double(worker["embedding"])
    inputs = [table[config.vocab_size]] + [table[token] for token in tokens[:-1]]  # x_0 (the start token)..x_{T-1}
    kernel, bias = double(worker["output_kernel"]), double(worker["output_bias"])
    logits = []
    for h, embedding in zip(lstm(worker["lstm"], inputs), embeddings, strict=True):
        matrix = np.zeros((config.vocab_size, len(embedding)))  # O_t, [V, k]
        for v in range(config.vocab_size):
            matrix[v] = h @ kernel[:, :, v] + bias[:, v]
        logits.append(matrix @ embedding)
    return np.array(logits)


def log_probs(config, manager, worker, d, tokens, temperature):
    """`[T] -> [T]`, Eq. 6: log-probability of each token given those before it; 0 where the token is PAD."""
    result = np.zeros(len(tokens))
    for t, logits in enumerate(step_logits(config, manager, worker, d, tokens)):
        if tokens[t] != config.pad_id:
            result[t] = log_softmax(logits / temperature)[tokens[t]]
    return result


def completion(config, manager, worker, d, prefix, num_given, uniforms, temperature):
    """`[>= num_given], [T] -> [T]`, Eq. 6: keeps the first `num_given` tokens, draws token index t by `uniforms[t]`.

    Inverse CDF in vocabulary order; everything after the end token, given or drawn, is PAD.
    """
    score = functools.partial(step_logits, config, manager, worker, d)
    return draw_rest(config, score, prefix, num_given, uniforms, temperature)


def draw_rest(config, score, prefix, num_given, uniforms, temperature):
    """`completion` by any model: `score` is `[T] -> [T, V]`, whose row t looks at the first t tokens only."""
    tokens = np.full(config.length, config.pad_id)
    tokens[:num_given] = prefix[:num_given]
    ended = config.end_id is not None and config.end_id in tokens[:num_given]
    for t in range(num_given, config.length):
        if ended:
            break
        p = np.exp(log_softmax(score(tokens)[t] / temperature))
        drawn = np.searchsorted(np.cumsum(p) / np.sum(p), uniforms[t], side="right")
        tokens[t] = min(drawn, config.vocab_size - 1)  # the last sum may round to just below 1
        ended = tokens[t] == config.end_id
    return tokens


# --- Training signal (Eq. 7-11) ----------------------------------------------------------------------------------


def rescale(values, slope, live=None):
    """`[B, J] -> [B, J]`, Eq. 11 over the live rows of each column; rank 1 = highest, ties share their mean rank.

    `live`: bool `[B, J]`, all True by default. Rows that are not live get 0 and count for nothing.
    """
    values = double(values)
    live = np.ones(values.shape, dtype=bool) if live is None else np.asarray(live)
    rescaled = np.zeros(values.shape)
    for column in range(values.shape[1]):
        rows = [b for b in range(len(values)) if live[b, column]]
        for b in rows:
            higher = sum(values[other, column] > values[b, column] for other in rows)
            equal = sum(values[other, column] == values[b, column] for other in rows)  # itself included
            rank = higher + (equal + 1) / 2
            rescaled[b, column] = sigmoid(slope * (0.5 - rank / len(rows)))
    return rescaled


def rescaled(config, values, live):
    """`[B, J], [B, J] bool -> [B, J]`: values under `config.rescaling`; "shuffled" ranks rows by their place."""
    if config.rescaling == "off":
        return np.where(live, values, 0)
    places = np.array([[-row] * values.shape[1] for row in range(len(values))])
    return rescale(values if config.rescaling == "rank" else places, config.rescale_slope, live)


def token_rewards(config, rewards, lengths):
    """`[B, T], [B] -> [B, T]`: rewards under `config.credit` and `config.advantage`; 0 after a sentence's end."""
    result = np.zeros(np.shape(rewards))
    for b, length in enumerate(lengths):
        for t in range(length):
            everyone = np.concatenate([row[:own] for row, own in zip(rewards, lengths, strict=True)])
            chosen = {"token": rewards[b][t], "sentence": np.mean(rewards[b][:length]), "batch": np.mean(everyone)}
            result[b, t] = chosen[config.credit]
    if config.advantage == "none":
        return result
    for t in range(result.shape[1]):
        rows = [b for b, length in enumerate(lengths) if t < length]
        result[rows, t] -= np.mean(result[rows, t]) if rows else 0
    if config.advantage == "standardised":
        result /= np.std([result[b, t] for b, length in enumerate(lengths) for t in range(length)])
    return result


def intrinsic_reward(config, manager, features, goals):
    """`[T + 1, F], [T, F] -> [T]`, Eq. 9 (released: one cosine with the block's held goal); index t - 1 is token t."""
    horizon = config.goal_horizon
    rewards = np.zeros(len(goals))
    for t in range(1, len(goals) + 1):
        if config.reading == "released":
            block = (t - 1) // horizon
            held = held_goals(config, manager, goals)[block]
            rewards[t - 1] = cosine(features[t] - features[block * horizon], held)
            continue
        for i in range(1, horizon + 1):
            if t - i >= 0:
                rewards[t - 1] += cosine(features[t] - features[t - i], goals[t - i]) / horizon
    return rewards


def manager_terms(config, manager, features, goals):
    """`[T + 1, F], [T, F] -> list of (t or block j, cosine)`, the cosines of Eq. 7 and 10; paper: t = 0..T-C."""
    horizon, terms = config.goal_horizon, []
    if config.reading == "released":
        for block, held in enumerate(held_goals(config, manager, goals)):
            moved = features[(block + 1) * horizon] - features[block * horizon]
            terms.append((block, cosine(moved, held)))
    else:
        for t in range(len(goals) - horizon + 1):
            terms.append((t, cosine(features[t + horizon] - features[t], goals[t])))
    return terms


def manager_rewards(config, rescaled):
    """`[T / C] -> [terms]`, R of Eq. 7: the first block end at or after t + C (paper), or block j's own (released)."""
    if config.reading == "released":
        return np.array([rescaled[block] for block in range(len(rescaled))])
    horizon, rewards = config.goal_horizon, []
    for t in range(len(rescaled) * horizon - horizon + 1):
        block = 0
        while (block + 1) * horizon < t + horizon:
            block += 1
        rewards.append(rescaled[block])
    return np.array(rewards)


# --- Losses, over a batch ----------------------------------------------------------------------------------------


def manager_loss(config, manager, features, goals, rewards, lengths):
    """`[B, T + 1, F], [B, T, F], [B, T / C] or None, [B] -> float`, Eq. 7; Eq. 10 (R = 1) where rewards is None.

    Mean over the (sentence, term) pairs whose term starts before the end of the sentence.
    """
    counted = []
    for b in range(len(goals)):
        terms = manager_terms(config, manager, features[b], goals[b])
        values = np.ones(len(terms)) if rewards is None else manager_rewards(config, rewards[b])
        for (position, cos), value in zip(terms, values, strict=True):
            start = position * config.goal_horizon if config.reading == "released" else position
            if start < lengths[b]:
                counted.append(value * cos)
    return -float(np.mean(counted))


def worker_loss(config, rewards, log_probs, lengths):
    """`[B, T], [B, T], [B] -> float`, Eq. 8: minus the mean of r_t * log p over the tokens within their sentences."""
    counted = []
    for b in range(len(lengths)):
        for t in range(lengths[b]):
            counted.append(float(rewards[b][t]) * float(log_probs[b][t]))
    return -float(np.mean(counted))


def mle_loss(config, log_probs, lengths):
    """`[B, T], [B] -> float`: minus the mean of log p (Eq. 6) over the tokens within their sentences."""
    counted = []
    for b in range(len(lengths)):
        for t in range(lengths[b]):
            counted.append(float(log_probs[b][t]))
    return -float(np.mean(counted))


def discriminator_loss(config, d, tokens, is_real):
    """`[B, T], [B] bool -> float`, Eq. 1 trained by cross-entropy, plus L2 on the output layer; no dropout."""
    losses = []
    for sentence, real in zip(tokens, is_real, strict=True):
        logit = score(d, feature(config, d, sentence))
        losses.append(np.logaddexp(0.0, -logit if real else logit))  # -log of the right class's probability
    penalty = np.sum(double(d["output_kernel"]) ** 2) + double(d["output_bias"]) ** 2
    return float(np.mean(losses) + config.discriminator_l2 * 0.5 * penalty)


# --- Baselines: an LSTM generator, and RankGAN's ranker ------------------------------------------------------------


def plain_logits(config, generator, tokens):
    """`[T] -> [T, V]`: row t is the LSTM's logits of token t + 1 given the first t, before temperature."""
    table = double(generator["embedding"])
    inputs = [table[config.vocab_size]] + [table[token] for token in tokens[:-1]]
    kernel, bias = double(generator["output_kernel"]), double(generator["output_bias"])
    return np.array([h @ kernel + bias for h in lstm(generator["lstm"], inputs)])


def plain_log_probs(config, generator, tokens, temperature):
    """`[T] -> [T]`: log-probability of each token given those before it; 0 where the token is PAD."""
    result = np.zeros(len(tokens))
    for t, logits in enumerate(plain_logits(config, generator, tokens)):
        if tokens[t] != config.pad_id:
            result[t] = log_softmax(logits / temperature)[tokens[t]]
    return result


def log_rank(config, y, references, comparison):
    """`[F], [U, F], [c, F] -> float`: RankGAN's log R(s | U, C), the mean over references u of log P(s | u, C)."""
    logs = []
    for u in references:
        own = np.exp(config.rank_gamma * cosine(y, u))
        total = own
        for other in comparison:
            total += np.exp(config.rank_gamma * cosine(other, u))
        logs.append(np.log(own / total))
    return float(np.mean(logs))


def ranker_loss(config, d, tokens, is_real, references):
    """`[B, T], [B] bool, [U, T] -> float`: mean log R of generated less that of real, each kind against the other."""
    features = [feature(config, d, sentence) for sentence in tokens]
    compared = [feature(config, d, sentence) for sentence in references]
    ranks = {True: [], False: []}
    for y, real in zip(features, is_real, strict=True):
        rivals = [other for other, kind in zip(features, is_real, strict=True) if kind != real]
        ranks[bool(real)].append(log_rank(config, y, compared, rivals))
    return float(np.mean(ranks[False]) - np.mean(ranks[True]))
