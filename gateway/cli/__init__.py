"""The command line, `modelnet`. Every command imports what it needs when it runs: `--help` stays quick."""


def main() -> None:
    """Entry point of the `modelnet` script."""
    from gateway.cli.commands import app

    app()
