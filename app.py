"""Starts the dashboard: python app.py [--model NAME | --scores FILE] [--host HOST] [--port PORT]."""

import sys

from numprune.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
