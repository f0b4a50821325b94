"""Gristmill's library: data, models, training, alignment, evaluation, export, serving; knows no dvc and no prefect."""
