"""Texts: tokenizers, files of texts, and the data sets made of them."""
