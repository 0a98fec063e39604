"""Searches over HTTP are those of the library, with each word's region, box, similarity and share."""

from pathlib import Path

import httpx
import pytest

from chan_rt.runtime import open_gallery_with_matcher

CAPTION = "two red apples lie on the blue table"


def test_a_search_is_that_of_the_library(http: httpx.Client, gallery: Path) -> None:
    answer = http.post("/v1/search", json={"captions": [CAPTION, "a cloud"], "k": 3})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["gallery"], body["kind"]) == ("gallery", "images")
    with open_gallery_with_matcher(gallery, threads=1) as (opened, matcher):
        queries = matcher.encode_texts([CAPTION, "a cloud"])
        for found, expected in zip(body["results"], opened.search(queries, 3), strict=True):
            assert found["certified"] is True
            assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected.hits]
            for mine, theirs in zip(found["hits"], expected.hits, strict=True):
                assert mine["score"] == pytest.approx(theirs.score, abs=1e-5)
                explanation = matcher.explain(opened.embeddings([theirs.id]), CAPTION)
                if found is body["results"][0]:
                    assert [word["word"] for word in mine["words"]] == [one.word for one in explanation.words]
                    assert [word["share"] for word in mine["words"]] == pytest.approx(
                        [one.share for one in explanation.words], abs=1e-5
                    )
