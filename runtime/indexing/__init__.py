"""Filling a gallery: what a source holds, which of its items are new or changed, and the run that encodes them."""
