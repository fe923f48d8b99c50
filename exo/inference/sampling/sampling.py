"""From logits to the next token. Pure: the choice depends only on logits, parameters, history, seed
and position.

Order as in Hugging Face `generate`: logit bias, repetition penalty, presence and frequency penalty,
temperature, top-k, top-p, min-p, typical-p. The random number is counter based (Philox, keyed by
the seed, counter = position), so a replayed sequence chooses the same tokens on any node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.errors import ExoError
from exo.inference.sampling.params import SamplingParams

# Tokens whose score is below the best one by more than this are examined only where necessary.
NEAR: Final = 8.0
# How many of the most likely tokens are examined before all of them are.
HEADS: Final = (1024, 8192)


def sample(
    logits: Array,
    params: SamplingParams,
    history: Sequence[int],
    prompt_length: int,
    position: int,
    allowed: Array | None = None,
) -> tuple[int, float | None, tuple[tuple[int, float], ...]]:
    """Choose the token for `position`. Raises `ExoError` where the logits are not numbers, or
    nothing is allowed.

    logits: float32 (vocab,).
    history: prompt and tokens so far; the first `prompt_length` are the prompt.
    allowed: bool (vocab,), the tokens that a constraint leaves; None: all.

    Returns (token, log probability, most likely alternatives as (token, log probability)). The last
    two are None and () unless `params.logprobs` asks for them. They are of the model's own
    distribution, before penalties and temperature.
    """
    token = _draw_from_head(logits, params, history, prompt_length, position, allowed)
    if token is None:
        ids, probabilities = distribution(logits, params, history, prompt_length, allowed)
        token = (
            int(ids[0])
            if len(ids) == 1
            else _draw(ids, probabilities, _uniform(params.seed, position))
        )
    if params.logprobs is None:
        return token, None, ()
    return token, *_log_probabilities(logits, token, params.logprobs)


def _draw(ids: Array, probabilities: Array, uniform: float) -> int:
    place = int(
        np.searchsorted(np.cumsum(probabilities), uniform * probabilities.sum(), side="right")
    )
    return int(ids[min(place, len(ids) - 1)])


def _draw_from_head(
    logits: Array,
    params: SamplingParams,
    history: Sequence[int],
    prompt_length: int,
    position: int,
    allowed: Array | None,
) -> int | None:
    """A draw from all tokens (no top-k, top-p, min-p: the API's default) without sorting the whole
    vocabulary.

    It gives the same token as `distribution` would, several times as fast; None where the draw
    falls outside the most likely tokens.
    """
    if params.temperature == 0 or params.cuts or len(logits) <= 4 * HEADS[0]:
        return None
    scores = penalised(logits, params, history, prompt_length)
    if allowed is not None:
        scores[~allowed] = -np.inf
    _apply_temperature(scores, params)
    weights = np.exp(scores)
    point = _uniform(params.seed, position) * weights.sum()
    for ids in _beginnings(scores):
        mass = np.cumsum(weights[ids])
        if point < mass[-1]:
            return int(ids[int(np.searchsorted(mass, point, side="right"))])
    return None


def distribution(
    logits: Array,
    params: SamplingParams,
    history: Sequence[int],
    prompt_length: int = 0,
    allowed: Array | None = None,
) -> tuple[Array, Array]:
    """(token ids, float64 probabilities) that a draw chooses from, most likely first; a single
    token where greedy.
    """
    scores = penalised(logits, params, history, prompt_length)
    if allowed is not None:
        scores[~allowed] = -np.inf
    if params.temperature == 0:
        token = int(scores.argmax())
        check_number(scores[token])
        return np.array([token]), np.ones(1)
    _apply_temperature(scores, params)
    weights = np.exp(scores)
    ids = _most_likely_first(scores, weights, params)
    # What is outside `ids` counts in the total, except where top-k has removed it.
    total = weights[ids].sum() if 0 < params.top_k < len(scores) else weights.sum()
    weights = weights[ids]
    if params.top_p < 1.0:
        ids, weights = _nucleus(ids, weights, total, params.top_p)
    if params.min_p > 0.0:
        kept = weights >= params.min_p * weights[0]
        ids, weights = ids[kept], weights[kept]
    if params.typical_p < 1.0:
        ids, weights = _typical(ids, weights, params.typical_p)
    kept = weights > 0  # what a constraint forbids
    ids, weights = ids[kept], weights[kept]
    return ids, weights / weights.sum()


def check_number(best: float) -> None:
    """`best`: the largest score. Raises `ExoError` if it is not a number, so that no token can be
    chosen.
    """
    if not np.isfinite(best):
        raise ExoError(
            f"no token can be chosen: the best score is {best}; the model's weights may be damaged"
        )


def _apply_temperature(scores: Array, params: SamplingParams) -> None:
    """In place. The best score becomes 0 first and stays so: the smallest temperature makes only
    the others infinite.
    """
    best = scores.max()
    check_number(best)
    with np.errstate(over="ignore"):
        scores -= best
        scores /= params.temperature


def penalised(
    logits: Array, params: SamplingParams, history: Sequence[int], prompt_length: int
) -> Array:
    """Bias and penalties, on a float64 copy. Presence and frequency count generated tokens only, as
    OpenAI does.
    """
    scores = logits.astype(np.float64)
    vocab = len(scores)
    for token, bias in params.logit_bias.items():
        if 0 <= token < vocab:
            scores[token] += bias
    if params.repetition_penalty != 1.0 and len(history):
        seen = np.unique(np.asarray(history, dtype=np.int64))
        values = scores[seen]
        scores[seen] = np.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    produced = history[prompt_length:]
    if (params.presence_penalty or params.frequency_penalty) and len(produced):
        tokens, counts = np.unique(np.asarray(produced, dtype=np.int64), return_counts=True)
        scores[tokens] -= params.presence_penalty + params.frequency_penalty * counts
    return scores


def _most_likely_first(scores: Array, weights: Array, params: SamplingParams) -> Array:
    """Ids after top-k, by falling score, equal scores by id. Only as many as top-p can need or
    min-p will keep.
    """
    vocab = len(scores)
    if 0 < params.top_k < vocab:
        return _sorted_ids(scores, _at_least(scores, params.top_k))
    if params.min_p > 0.0:
        # Whatever top-p leaves out, min-p compares with the best one. These are a few more than it
        # will keep; it decides exactly.
        return _sorted_ids(scores, np.flatnonzero(scores >= math.log(params.min_p) - 1e-6))
    if params.top_p < 1.0:
        enough = (params.top_p + 1e-9) * weights.sum()
        for ids in _beginnings(scores):
            if weights[ids].sum() > enough:
                return ids
    return _sorted_ids(scores, np.arange(vocab))


def _beginnings(scores: Array) -> Iterator[Array]:
    """The first ids in the order of falling scores, usually more each time. The best score must be
    0.

    Sorting a whole vocabulary takes as long as a decode step, and nearly every draw falls on the
    most likely tokens.
    """
    near = np.flatnonzero(scores >= -NEAR)
    if len(near) <= HEADS[0]:
        yield _sorted_ids(scores, near)
    for size in HEADS:
        if len(scores) > 4 * size:
            yield _sorted_ids(scores, _at_least(scores, size))


def _at_least(scores: Array, size: int) -> Array:
    """Ids of the `size` largest scores, and of those that equal the last of them."""
    place = len(scores) - size
    return np.flatnonzero(scores >= np.partition(scores, place)[place])


def _sorted_ids(scores: Array, ids: Array) -> Array:
    order: Array = ids[np.argsort(-scores[ids], kind="stable")]
    return order


def _nucleus(ids: Array, weights: Array, total: float, top_p: float) -> tuple[Array, Array]:
    """Drop a token when it and all less likely ones together have at most 1 - top_p; the best one
    stays.
    """
    more_likely = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
    kept = (total - more_likely) > (1.0 - top_p) * total
    kept[0] = True
    return ids[kept], weights[kept]


def _typical(ids: Array, weights: Array, typical_p: float) -> tuple[Array, Array]:
    """Keep the tokens whose surprise is nearest to the expected one, to a mass of `typical_p`."""
    ids, weights = ids[weights > 0], weights[weights > 0]
    probabilities = weights / weights.sum()
    surprise = -np.log(probabilities)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probabilities[order]) < typical_p).sum()), len(ids) - 1)
    kept = distance <= distance[order[last]]
    return ids[kept], weights[kept]


def _uniform(seed: int, position: int) -> float:
    generator = np.random.Generator(np.random.Philox(key=seed & (1 << 128) - 1, counter=position))
    return float(generator.random())


def _log_probabilities(
    logits: Array, token: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    count = min(count, len(scores))
    if count == 0:
        return float(scores[token]), ()
    best = _sorted_ids(scores, _at_least(scores, count))[:count]
    return float(scores[token]), tuple((int(i), float(scores[i])) for i in best)
