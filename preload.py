"""Command line flags, which a WebUI parses before it starts."""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Adds our flags to the WebUI's."""
    parser.add_argument(
        "--athanor-leave-lora",
        action="store_true",
        help="leave <lora:…> tags to the WebUI's own loader, whatever the settings say",
    )
