"""The page to play with, docs/play: its code under node, without a browser."""
