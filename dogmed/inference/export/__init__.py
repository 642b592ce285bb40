"""Trained models for others: graphs, bundles, model cards, the hub."""
