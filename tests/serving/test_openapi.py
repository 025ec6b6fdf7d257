"""The OpenAPI description: valid, complete, and kept by the server when requests are made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from starlette.routing import Route

from tests.serving.conftest import Running, StartServer, source
from tl.serving import app as serving_app
from tl.serving.limits import Limits
from tl.serving.openapi import describe_api


def test_openapi__is_valid_and_has_every_route(server: Running) -> None:
    described = server.client.get("/openapi.json").json()
    validate(described)
    routes = [route for route in serving_app._routes(None, Path("none")) if isinstance(route, Route)]  # type: ignore[arg-type]
    methods = {(route.path, method.lower()) for route in routes for method in route.methods or () if method != "HEAD"}
    assert {(path, method) for path, known in described["paths"].items() for method in known} == methods


def test_openapi__states_the_limits() -> None:
    post = describe_api(Limits(max_images=7))["paths"]["/predict"]["post"]
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["images"]["maxItems"] == 7


@pytest.mark.slow
def test_openapi__requests_made_from_it_are_answered_as_described(start: StartServer, files: dict[str, Path]) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    running = start(source(files["color"]), source(files["cam"]))
    schema = schemathesis.openapi.from_url(f"http://{running.url}/openapi.json")
    codes: set[int] = set()

    for found in schema.get_all_operations():
        operation = found.ok()
        if re.search("openapi|metrics", operation.path):
            continue

        @settings(max_examples=40, deadline=None, derandomize=True, database=None,
                  phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy())
        def check(case) -> None:  # type: ignore[no-untyped-def]
            answer = case.call(base_url=f"http://{running.url}")
            codes.add(answer.status_code)
            # Which options a model supports cannot be said in a schema.
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])

        check()
    assert 200 in codes
    assert not {500, 502} & codes
