"""The library: `Client` and `AsyncClient`, over HTTP, gRPC, or an engine of its own."""
