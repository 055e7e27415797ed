"""Solution paths in text: which are right, which are the same, how far two are apart."""
