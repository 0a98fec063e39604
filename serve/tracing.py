"""Traces of requests, sent to a collector over OTLP where `--otlp-endpoint` asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from ..runtime.extras import needs


class Tracing:
    """A span for each request, as a child of the client's span (`traceparent`), with the times of its parts.

    Args:
        endpoint: URL of the collector; None makes no spans.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._provider: Any = None
        if endpoint is None:
            return
        with needs("opentelemetry", "--otlp-endpoint"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        resource = Resource.create({"service.name": "chan-serve", "service.version": version("chan-rt")})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("chan_rt.serve")

    @contextmanager
    def request(self, headers: Mapping[str, str], facts: Mapping[str, Any]) -> Iterator[None]:
        """A span around one request.

        Args:
            headers: of the request.
            facts: attributes of the span by name; read at its end, when all are known.
        """
        if self._provider is None:
            yield
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span("request", context=parent, kind=SpanKind.SERVER) as span:
            try:
                yield
            finally:
                span.update_name(f"{facts.get('method')} {facts.get('route')}")
                span.set_attributes({f"chan.{name}": value for name, value in facts.items() if value is not None})

    def close(self) -> None:
        """Send what was not sent yet."""
        if self._provider is not None:
            self._provider.shutdown()
