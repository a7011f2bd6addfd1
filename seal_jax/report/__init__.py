"""What a person sees of a run: the live display, the metrics files and the page. Reads data, decides nothing."""
