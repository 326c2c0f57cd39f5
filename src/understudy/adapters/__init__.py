"""Teachers from other frameworks, one file each; the only place that imports them, and only when they are used."""
