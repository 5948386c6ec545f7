"""`rapid-dist gallery`."""

import threading
from typing import Annotated

import typer

from rapid_dist.cli.generate import TrackingOption, registry_address
from rapid_dist.cli.options import DebugOption


def add_gallery(app: typer.Typer) -> None:
    """Adds `gallery`."""
    app.command("gallery", help="Show a registry's models, passports and samples in a browser.")(
        gallery
    )


def gallery(
    tracking_uri: TrackingOption = "",
    host: Annotated[str, typer.Option("--host", help="Whom to listen to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8800,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.release.pull import Registry
    from rapid_dist.runtime.gallery import Gallery, served
    from rapid_dist.runtime.signals import stop_on_sigterm

    registry = Registry(registry_address(tracking_uri))
    with served(Gallery(registry), host, port) as address:
        print(f"gallery    {address}", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("           Whoever reaches this machine sees it, and can have samples drawn.")
        print("           Ctrl-C ends it.", flush=True)
        try:
            with stop_on_sigterm():
                threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")
