"""Gristmill's library: data, model, training, alignment, evaluation, export, serving. Knows nothing of dvc or prefect."""
