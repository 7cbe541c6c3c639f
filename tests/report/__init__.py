"""What `adamas report` reads, finds and shows."""
