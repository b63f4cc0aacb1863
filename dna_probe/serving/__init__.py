"""A detector behind HTTP: concurrent requests gathered into batches, limits, metrics, and a page for one image."""
