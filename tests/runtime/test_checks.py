"""A value that is not among the choices is one class of error, in the same words everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import Embeddings, Matcher, evaluate
from chan_rt.runtime.checks import as_list, check_choice, check_choices
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import InputError, TensorError


@pytest.mark.parametrize("take", ["regions", "rows", "vectors", "scores"])
def test_what_lies_under_a_mask_is_no_number(take: str, make_small_model: Any) -> None:
    def masked(shape: tuple[int, ...], some: bool) -> Any:
        mask = np.zeros(shape, bool)
        mask.flat[1] = some
        return np.ma.MaskedArray(np.ones(shape, np.float32), mask)

    def call(some: bool) -> object:
        if take == "rows":
            return Embeddings.from_rows([masked((2, 3), some)])
        if take == "vectors":
            return Embeddings(masked((1, 2, 3), some), np.array([2], np.int32))
        if take == "scores":
            return evaluate(masked((1, 2), some), np.array([0, 0]))
        with Matcher.open(make_small_model().bundle, backend="onnxruntime", threads=1) as matcher:
            return matcher.encode_images(masked((1, 2, 12), some))

    call(False)
    with pytest.raises(TensorError, match="must not be masked: leave out or fill what is missing, got 1 masked value"):
        call(True)


def test_a_list_has_an_order() -> None:
    assert as_list("captions", (word for word in ("red", "cat"))) == ["red", "cat"]
    refused: list[tuple[Any, str]] = [({1}, "have an order, got a set"), (None, "be a list, got NoneType")]
    for given, found in [*refused, ("a.png", "be a list, got one path")]:
        with pytest.raises(InputError, match=f"^pictures must {found}"):
            as_list("pictures", given)


def test_a_choice() -> None:
    check_choice("ties", "random", ("random", "published"))
    with pytest.raises(InputError, match=r"^ties must be one of random, published, got 'other'$"):
        check_choice("ties", "other", ("random", "published"))


def test_one_or_more_choices() -> None:
    check_choices("precision", ["fp16", "fp16"], {"fp32": 1, "fp16": 2})
    with pytest.raises(InputError, match=r"^precision must be one or more of fp32, fp16, got fp8, int4$"):
        check_choices("precision", ["fp8", "fp16", "int4"], {"fp32": 1, "fp16": 2})
    with pytest.raises(InputError, match="got none"):
        check_choices("precision", [], {"fp32": 1})


@pytest.mark.parametrize("wrong", [{"coding": "ABC"}, {"pooling": "TopK"}, {"attention_temperature": 0.0}])
def test_a_wrong_alignment_is_an_error_of_the_argument(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
        AlignmentConfig(**wrong)  # type: ignore[arg-type]
