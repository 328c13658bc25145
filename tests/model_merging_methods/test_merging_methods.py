"""The formulas, position by position, against the papers' definitions written for single numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_merging_methods.merging_methods import MERGING_METHODS, Coefficients, average_merging, task_arithmetic

# Few different values, so that magnitudes tie and sums cancel exactly.
values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


@st.composite
def models(draw):
    """θ0, θ1 … θK and interpolation weights, K from 2 to 5."""
    k, n = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    block = st.lists(values, min_size=n, max_size=n)
    raw = draw(st.lists(st.integers(0, 4), min_size=k, max_size=k).filter(any))
    weights = tuple(w / sum(raw) for w in raw)
    return draw(block), [draw(block) for _ in range(k)], weights


def plain_ties(theta0, thetas, thresholds, majority, weights, s):
    """TIES at one position, in plain Python numbers."""
    taus = [theta - theta0 for theta in thetas]
    taus = [tau if abs(tau) >= t else 0 for tau, t in zip(taus, thresholds, strict=True)]
    sign = np.sign(sum(taus)) or majority
    part = [i for i, tau in enumerate(taus) if tau * sign > 0]
    if not part:
        return theta0
    plain_mean = sum(taus[i] for i in part) / len(part)
    if weights is None:
        return theta0 + s * plain_mean
    if len(part) == 1:
        return theta0 + s * taus[part[0]]
    interpolated = sum(weights[i] * taus[i] for i in part)
    if len(part) == len(thetas):
        return theta0 + s * interpolated
    share = sum(weights[i] for i in part)
    return theta0 + s * (interpolated / share if share else plain_mean)


@given(models(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([-1, 0, 1]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_ties_is_its_definition_at_every_position(drawn, threshold, majority, mixup):
    theta0, thetas, weights = drawn
    using = Coefficients(weights if mixup else None, 0.75, (threshold,) * len(thetas), majority)
    merged = MERGING_METHODS["ties_merging"].formula(
        torch.tensor(theta0), [torch.tensor(theta) for theta in thetas], using
    )
    expected = [
        plain_ties(theta0[j], [t[j] for t in thetas], using.trim_thresholds, majority, using.weights, 0.75)
        for j in range(len(theta0))
    ]
    assert merged.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(models())
@settings(deadline=None)
def test_averages_and_task_vectors_are_their_sums(drawn):
    theta0, thetas, weights = drawn
    blocks = [torch.tensor(theta) for theta in thetas]
    array, base = np.array(thetas), np.array(theta0)

    plain = average_merging(None, blocks, Coefficients())
    assert plain.tolist() == pytest.approx(array.mean(axis=0).tolist())
    mixed = average_merging(None, blocks, Coefficients(weights))
    assert mixed.tolist() == pytest.approx((np.array(weights) @ array).tolist(), abs=1e-6)

    summed = task_arithmetic(torch.tensor(theta0), blocks, Coefficients(scaling_coefficient=0.5))
    assert summed.tolist() == pytest.approx((base + 0.5 * (array - base).sum(axis=0)).tolist(), abs=1e-5)
    mixed = task_arithmetic(torch.tensor(theta0), blocks, Coefficients(weights))
    assert mixed.tolist() == pytest.approx((base + np.array(weights) @ (array - base)).tolist(), abs=1e-5)


@pytest.mark.parametrize("method", list(MERGING_METHODS))
def test_the_inputs_stay_as_they_are(method):
    blocks = [torch.randn(8) for _ in range(3)]
    copies = [block.clone() for block in blocks]
    MERGING_METHODS[method].formula(blocks[0], blocks[1:], Coefficients(trim_thresholds=(0.1, 0.1)))
    assert all(torch.equal(block, copy) for block, copy in zip(blocks, copies, strict=True))


@pytest.mark.parametrize("method", list(MERGING_METHODS))
def test_the_first_model_alone_comes_back_at_lambda_one(method):
    theta0, theta1, theta2 = torch.randn(3, 50)
    theta2 = theta0 + 0.01 * (theta1 - theta0).sign()  # agrees in sign, so that every position is shared
    merged = MERGING_METHODS[method].formula(
        theta0, [theta1, theta2], Coefficients((1.0, 0.0), trim_thresholds=(0.0, 0.0))
    )
    torch.testing.assert_close(merged, theta1)
