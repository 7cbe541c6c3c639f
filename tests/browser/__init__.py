"""The page to play with, docs/play, in Chromium."""
