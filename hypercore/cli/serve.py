"""`hypercore serve`: gRPC and HTTP for other programs."""

from pathlib import Path

import click

from hypercore.cli.common import host_config
from hypercore.privilege import require_root


@click.command(name="serve", short_help="Serve gRPC and HTTP until it is stopped.")
@click.option("--http-socket", metavar="PATH", help="Default: /run/hypercore/api.sock.")
@click.option("--grpc-socket", metavar="PATH", help="Default: /run/hypercore/grpc.sock.")
@click.option("--group", metavar="NAME", help="May open the sockets, which is to be root; default:"
              " the group hypercore where there is one.")  # fmt: skip
@click.option("--http", "http_tcp", metavar="ADDRESS:PORT", help="Also HTTP over TCP.")
@click.option("--grpc", "grpc_tcp", metavar="ADDRESS:PORT", help="Also gRPC over TCP.")
@click.option("--tls-cert", metavar="FILE", help="Our certificate, for TCP.")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option("--client-ca", metavar="FILE", help="Callers must have a certificate of this CA.")
@click.option("--plaintext", is_flag=True, help="TCP without TLS, on loopback only.")
@click.pass_context
def serve_command(
    ctx: click.Context,
    http_socket: str | None,
    grpc_socket: str | None,
    group: str | None,
    http_tcp: str | None,
    grpc_tcp: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    client_ca: str | None,
    plaintext: bool,
) -> None:
    """Serve gRPC and HTTP until it is stopped by SIGTERM or Ctrl-C; microVMs live on.

    Through the unix sockets everything is allowed, over TCP what `hypercore token` has granted.
    """
    require_root()
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key go together", ctx)
    if client_ca and not tls_cert:
        raise click.UsageError("--client-ca needs --tls-cert", ctx)
    config = host_config(ctx.obj)
    from hypercore import paths
    from hypercore.serve import listeners

    tls = None
    if tls_cert and tls_key:
        ca = Path(client_ca) if client_ca else None
        tls = listeners.Tls(Path(tls_cert), Path(tls_key), ca)
    settings = listeners.Settings(
        http_socket=Path(http_socket) if http_socket else paths.api_socket(),
        grpc_socket=Path(grpc_socket) if grpc_socket else paths.grpc_socket(),
        group=listeners.default_group() if group is None else group,
        http_tcp=listeners.parse_address(http_tcp) if http_tcp else None,
        grpc_tcp=listeners.parse_address(grpc_tcp) if grpc_tcp else None,
        tls=tls,
        plaintext=plaintext,
    )
    settings.check()
    import asyncio
    import logging

    import uvloop

    from hypercore.serve import daemon

    level = logging.DEBUG if ctx.obj.debug else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(daemon.run(settings, config, lambda line: print(line, flush=True)))
