"""How an activation and its parameters are written."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.models import ACTIVATIONS, activation_gain, make_activation, parse_activation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tanh", ("tanh", {})),
        (" tanh() ", ("tanh", {})),
        ("leaky_relu", ("leaky_relu", {"negative_slope": 0.01})),
        ("leaky_relu(1e-1)", ("leaky_relu", {"negative_slope": 0.1})),
        ("leaky_relu(negative_slope = -2)", ("leaky_relu", {"negative_slope": -2.0})),
        (
            "tempered_sigmoid(3, offset=+.5)",
            ("tempered_sigmoid", {"scale": 3.0, "inverse_temperature": 2.0, "offset": 0.5}),
        ),
    ],
)
def test_parse(text: str, expected: tuple[str, dict[str, float]]) -> None:
    assert parse_activation(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tahn", "unknown; did you mean 'tanh'?"),
        ("TanH(1)", "unknown; did you mean 'tanh'?"),
        ("tanh(1)", "1 values for 0 parameters; it takes: none"),
        ("tanh(beta=1)", "unknown parameter 'beta'; it takes none"),
        ("leaky_relu(0.1, 0.2)", "2 values for 1 parameters; it takes: negative_slope"),
        ("leaky_relu(slope=0.1)", "unknown parameter 'slope'; did you mean 'negative_slope'?"),
        ("leaky_relu(0.1, negative_slope=0.2)", "negative_slope is given twice; give it once"),
        ("leaky_relu(x)", "negative_slope must be a finite number, not 'x'"),
        ("leaky_relu(True)", "negative_slope must be a finite number, not 'True'"),
        ("leaky_relu('0.1')", "negative_slope must be a finite number, not \"'0.1'\""),
        ("leaky_relu(1e999)", "negative_slope must be a finite number, not '1e309'"),
        (f"elu({10**400})", f"alpha must be a finite number, not '{10**400}'"),
        ("leaky_relu(1j)", "negative_slope must be a finite number, not '1j'"),
        ("leaky_relu(--1)", "negative_slope must be a finite number, not '--1'"),
        ("leaky_relu(*[1])", "negative_slope must be a finite number, not '*[1]'"),
        ("leaky_relu(**{})", "unknown parameter '**'; valid: negative_slope"),
        ("elu(0)", "alpha must be above 0"),
        ("tempered_sigmoid(scale=-1)", "scale must be above 0"),
        ("elu(1e300)", "its initialisation gain would be 0.0; use less extreme parameters"),
    ],
)
def test_problems_name_the_value_and_the_remedy(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        activation_gain(text)
    assert caught.value.problems == (f"model.activation = {text!r}: {problem}",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relu(",
        "relu; tanh",
        "relu.forward",
        "relu + tanh",
        "relu()()",
        "(lambda: 1)()",
        "relu\0",
        "(" * 5000,
        "-" * 100_000 + "1",
        "__import__('os')",
        "__import__('os').system('echo')",
        "exec('1')",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.activation = "):
        parse_activation(text)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_activation("tempered_sigmoid(one, ofset=2)")
    assert len(caught.value.problems) == 2


@given(st.text(alphabet="elu(tanh)=,.019-+*[]'\"_ \\\n"))
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    try:
        name, parameters = parse_activation(text)
    except ConfigError:
        return
    assert parameters.keys() == ACTIVATIONS[name].parameters.keys()


@given(st.floats(min_value=1e-3, max_value=1e3))
def test_parameters_reach_the_module(slope: float) -> None:
    x = torch.tensor([-1.0], dtype=torch.float64)
    assert float(make_activation(f"leaky_relu({slope!r})")(x)) == -slope
    assert float(make_activation(f"elu(alpha={slope!r})")(x)) == pytest.approx(
        slope * math.expm1(-1), rel=1e-12
    )
