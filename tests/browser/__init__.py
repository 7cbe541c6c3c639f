"""The page to play with, docs/play, and the built pages, in Chromium."""
