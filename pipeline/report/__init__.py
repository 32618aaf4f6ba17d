"""Reports on a run for those who did not watch it: an HTML page, and the formats that CI displays."""
