"""A gallery in shards: ordinary galleries in one folder, and a manifest that says which commit of each is its rows."""
