"""A run on disk and on screen: journal, session, plan, progress and metrics."""
