"""The transfer set on disk: safetensors shards and a manifest written last, read and written, found by content key."""
