"""Rows from tables, arrays, images and callables: readers, labels, splits, content keys, encodings, views."""
