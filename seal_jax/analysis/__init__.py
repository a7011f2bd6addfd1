"""Figures from results: intervals, reliability, effects of settings, and the paper's own."""
